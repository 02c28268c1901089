/** Two pictures under a dividing line, or one: zoom, readout, legend, box and brush. */

const LAYOUT = `
  <figure class="sg-picture">
    <div class="sg-frame" role="group" tabindex="0">
      <div class="sg-zoomed">
        <img class="sg-right" alt="" draggable="false">
        <img class="sg-left" alt="" draggable="false">
        <canvas class="sg-paint"></canvas>
        <div class="sg-box"></div>
      </div>
      <div class="sg-line" role="slider" tabindex="0"
        aria-valuemin="0" aria-valuemax="100">
        <span class="sg-handle" aria-hidden="true"></span>
      </div>
      <span class="sg-name sg-name-left"></span>
      <span class="sg-name sg-name-right"></span>
      <div class="sg-mark" aria-hidden="true"></div>
    </div>
    <div class="sg-tools">
      <button class="sg-out" title="zoom out (-)" aria-label="zoom out">−</button>
      <button class="sg-in" title="zoom in (+)" aria-label="zoom in">+</button>
      <button class="sg-fit" title="fit (0)" aria-label="fit the picture">fit</button>
      <button class="sg-save" title="save the right picture as PNG">download</button>
      <span class="sg-readout"></span>
    </div>
    <div class="sg-scales"></div>
    <figcaption></figcaption>
  </figure>`;
const STEP = 0.02;
const ARROWS = {
  ArrowUp: [-STEP, 0],
  ArrowDown: [STEP, 0],
  ArrowLeft: [0, -STEP],
  ArrowRight: [0, STEP],
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** A number in plain digits, three of them significant. */
export function plain(x) {
  const digits = x === 0 ? 0 : 2 - Math.floor(Math.log10(Math.abs(x)));
  return x
    .toFixed(clamp(digits, 0, 6))
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}

/** A number with its unit: "12%", "3.4 m", "0.5". */
function withUnit(x, unit) {
  return unit === "%" ? `${plain(x)}%` : `${plain(x)} ${unit}`.trim();
}

/** Escape a text for HTML. */
function text(s) {
  const span = document.createElement("span");
  span.textContent = s;
  return span.innerHTML;
}

/** One side: its image, its values and what they stand for. */
class Side {
  constructor(model, name, img) {
    Object.assign(this, { model, name, img, url: null, pixels: null });
    img.addEventListener("load", () => (this.pixels = null));
  }

  get there() {
    return this.model.get(this.name).byteLength > 0;
  }

  get scale() {
    return this.model.get(`${this.name}_scale`);
  }

  show() {
    this.img.hidden = !this.there;
    if (!this.there) return;
    const old = this.url;
    this.url = URL.createObjectURL(
      new Blob([this.model.get(this.name)], { type: "image/png" }),
    );
    this.img.src = this.url;
    if (old) setTimeout(() => URL.revokeObjectURL(old), 1000);
  }

  /** The colour of a pixel, from a copy of the image made when first asked for. */
  colour(x, y) {
    if (!this.pixels) {
      const canvas = document.createElement("canvas");
      canvas.width = this.img.naturalWidth;
      canvas.height = this.img.naturalHeight;
      this.pixels = canvas.getContext("2d", { willReadFrequently: true });
      this.pixels.drawImage(this.img, 0, 0);
    }
    return [...this.pixels.getImageData(x, y, 1, 1).data.slice(0, 3)];
  }

  /** What is at (u, v), in shares of the picture, as a text. */
  read(u, v) {
    const { kind, size, step, classes, unit } = this.scale;
    if (!size || kind === "picture") {
      const x = clamp(
        Math.floor(u * this.img.naturalWidth),
        0,
        this.img.naturalWidth - 1,
      );
      const y = clamp(
        Math.floor(v * this.img.naturalHeight),
        0,
        this.img.naturalHeight - 1,
      );
      return `RGB ${this.colour(x, y).join(" ")}`;
    }
    const view = this.model.get(`${this.name}_values`);
    const column = clamp(Math.floor(u * size[0]), 0, size[0] - 1);
    const row = clamp(Math.floor(v * size[1]), 0, size[1] - 1);
    const value = view.getInt16(2 * (row * size[0] + column), true) * step;
    if (kind === "classes") return classes[value] ?? "unknown";
    return withUnit(value, unit);
  }

  /** Legend or colour bar as HTML. */
  key() {
    const { kind, name, legend, stops, bottom, top, unit } = this.scale;
    if (!this.there || !kind || kind === "picture") return "";
    if (kind === "classes") {
      const chips = legend.map(([label, colour, share]) => {
        const swatch = colour ? `<i style="background:${colour}"></i>` : "";
        const percent = (100 * share).toFixed(share < 0.01 ? 1 : 0);
        return `<span>${swatch}${text(label)} ${percent}%</span>`;
      });
      return `<div class="sg-legend"><b>${text(name)}</b> ${chips.join("")}</div>`;
    }
    const middle = kind === "signed" ? "<span>0</span>" : "";
    return `<div class="sg-bar"><b>${text(name)}</b>
      <div><i style="background:linear-gradient(to right, ${stops.join(", ")})"></i>
      <p><span>${text(withUnit(bottom, unit))}</span>${middle}
        <span>${text(withUnit(top, unit))}</span></p>
      </div></div>`;
  }
}

function render({ model, el }) {
  el.innerHTML = LAYOUT;
  const $ = (selector) => el.querySelector(selector);
  const frame = $(".sg-frame");
  const line = $(".sg-line");
  const paint = $(".sg-paint");
  const left = new Side(model, "left", $(".sg-left"));
  const right = new Side(model, "right", $(".sg-right"));

  // ---- what is shown -------------------------------------------------------
  function pictures() {
    left.show();
    right.show();
    line.hidden = !left.there;
    frame.classList.toggle("sg-empty", !right.there);
    paint.getContext("2d").clearRect(0, 0, paint.width, paint.height);
    words();
  }

  function words() {
    const [a, b] = model.get("names");
    const two = left.there;
    left.img.alt = a;
    right.img.alt = b;
    $(".sg-name-left").textContent = two ? a : "";
    $(".sg-name-right").textContent = b;
    line.setAttribute("aria-label", `dividing line between ${a} and ${b}`);
    $(".sg-scales").innerHTML = left.key() + right.key();
    $("figcaption").textContent = model.get("caption");
    $(".sg-tools").hidden = !right.there;
    const pick = model.get("pick");
    const how =
      pick === "box"
        ? "; arrow keys move the box, with shift they change its size"
        : pick === "brush"
          ? "; paint with the pointer"
          : "";
    const what = two ? `${a} and ${b}` : b || "no picture yet";
    frame.setAttribute("aria-label", `picture: ${what}${how}; plus, minus and 0 zoom`);
  }

  function marks() {
    const busy = model.get("busy");
    const stale = model.get("stale");
    const figure = $(".sg-picture");
    figure.classList.toggle("sg-busy", busy);
    figure.classList.toggle("sg-stale", stale && !busy);
    figure.style.setProperty("--sg-height", model.get("height"));
    const badge = model.get("badge");
    frame.dataset.empty = busy
      ? "the picture is being computed"
      : model.get("caption") || model.get("empty");
    $(".sg-mark").textContent = busy ? "computing …" : stale ? "out of date" : badge;
    $(".sg-mark").classList.toggle("sg-badge", Boolean(badge) && !busy && !stale);
  }

  right.img.addEventListener("load", () => {
    const { naturalWidth: w, naturalHeight: h } = right.img;
    frame.style.setProperty("--sg-ratio", w / h);
    paint.width = w;
    paint.height = h;
  });

  // ---- zoom and the dividing line ------------------------------------------
  function place() {
    const [zoom, cx, cy] = model.get("view");
    const [dx, dy] = [100 * (0.5 - cx * zoom), 100 * (0.5 - cy * zoom)];
    $(".sg-zoomed").style.transform = `translate(${dx}%, ${dy}%) scale(${zoom})`;
    $(".sg-zoomed").classList.toggle("sg-pixels", zoom >= 3);
    const split = model.get("split");
    const u = clamp((split - 0.5) / zoom + cx, 0, 1);
    line.style.left = `${100 * split}%`;
    line.setAttribute("aria-valuenow", Math.round(100 * split));
    line.setAttribute("aria-valuetext", `${Math.round(100 * split)} % from the left`);
    left.img.style.clipPath = `inset(0 ${100 * (1 - u)}% 0 0)`;
    const pick = model.get("pick");
    frame.dataset.pick = pick;
    frame.style.touchAction = pick === "brush" || zoom > 1 ? "none" : "pan-y";
    frame.classList.toggle("sg-zoomable", zoom > 1);
  }

  function setView(zoom, cx, cy) {
    zoom = clamp(zoom, 1, 32);
    const margin = 0.5 / zoom;
    const view = [zoom, clamp(cx, margin, 1 - margin), clamp(cy, margin, 1 - margin)];
    model.set("view", view);
    model.save_changes();
  }

  /** Zoom by a factor so that the point (s, t) of the frame stays where it is. */
  function zoomAt(factor, s = 0.5, t = 0.5) {
    const [zoom, cx, cy] = model.get("view");
    const next = clamp(zoom * factor, 1, 32);
    const [u, v] = [(s - 0.5) / zoom + cx, (t - 0.5) / zoom + cy];
    setView(next, u - (s - 0.5) / next, v - (t - 0.5) / next);
  }

  function setSplit(split) {
    model.set("split", clamp(split, 0, 1));
    model.save_changes();
  }

  /** Where an event is: in shares of the frame and in shares of the picture. */
  function at(event) {
    const r = frame.getBoundingClientRect();
    const s = (event.clientX - r.left) / r.width;
    const t = (event.clientY - r.top) / r.height;
    const [zoom, cx, cy] = model.get("view");
    return { s, t, u: (s - 0.5) / zoom + cx, v: (t - 0.5) / zoom + cy };
  }

  // ---- box and brush -------------------------------------------------------
  function mark() {
    const box = model.get("box");
    const frameBox = $(".sg-box");
    frameBox.hidden = model.get("pick") !== "box";
    ["top", "left", "height", "width"].forEach((side, i) => {
      frameBox.style[side] = `${100 * box[i]}%`;
    });
    place();
    words();
  }

  function setBox(top, left, height, width) {
    const [h, w] = [clamp(height, STEP, 1), clamp(width, STEP, 1)];
    model.set("box", [clamp(top, 0, 1 - h), clamp(left, 0, 1 - w), h, w]);
  }

  function drawStroke(points) {
    const pen = paint.getContext("2d");
    pen.clearRect(0, 0, paint.width, paint.height);
    pen.strokeStyle = getComputedStyle(frame).getPropertyValue("--sg-brush");
    pen.lineWidth = 2 * model.get("brush") * paint.width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    points.forEach(([u, v]) => pen.lineTo(u * paint.width, v * paint.height));
    if (points.length === 1)
      pen.lineTo(points[0][0] * paint.width + 0.1, points[0][1] * paint.height);
    pen.stroke();
  }

  function addStroke(points) {
    const numbers = [model.get("brush"), ...points.flat()].map((x) => x.toFixed(4));
    const before = model.get("strokes");
    model.set("strokes", before ? `${before};${numbers.join(" ")}` : numbers.join(" "));
    model.save_changes();
  }

  // ---- pointers ------------------------------------------------------------
  const pointers = new Map();
  let drag = null; // {kind, start, ...}

  function begin(event) {
    const where = at(event);
    const pick = model.get("pick");
    if (event.target.closest(".sg-line"))
      return { kind: "line", split: model.get("split") };
    if (pick === "box") return { kind: "box", where, box: model.get("box") };
    if (pick === "brush") return { kind: "brush", points: [[where.u, where.v]] };
    if (model.get("view")[0] > 1) return { kind: "pan", where };
    return left.there ? { kind: "line", split: model.get("split") } : null;
  }

  frame.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()];
      drag = {
        kind: "pinch",
        span: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
      };
      return;
    }
    drag = begin(event);
    if (!drag) return;
    frame.setPointerCapture(event.pointerId);
    if (event.pointerType === "mouse") event.preventDefault();
    (drag.kind === "line" ? line : frame).focus({ preventScroll: true });
    if (drag.kind === "line" && event.pointerType === "mouse") setSplit(at(event).s);
    if (drag.kind === "brush") drawStroke(drag.points);
  });

  frame.addEventListener("pointermove", (event) => {
    const where = at(event);
    readout(where);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, event);
    if (!drag) return;
    if (drag.kind === "pinch" && pointers.size === 2) {
      const [a, b] = [...pointers.values()];
      const span = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const middle = at({
        clientX: (a.clientX + b.clientX) / 2,
        clientY: (a.clientY + b.clientY) / 2,
      });
      zoomAt(span / drag.span, middle.s, middle.t);
      drag.span = span;
    } else if (drag.kind === "line") {
      setSplit(where.s);
    } else if (drag.kind === "pan") {
      const [zoom, cx, cy] = model.get("view");
      setView(zoom, cx + drag.where.u - where.u, cy + drag.where.v - where.v);
    } else if (drag.kind === "box") {
      const [u, v] = [clamp(where.u, 0, 1), clamp(where.v, 0, 1)];
      const { u: u0, v: v0 } = drag.where;
      setBox(Math.min(v0, v), Math.min(u0, u), Math.abs(v - v0), Math.abs(u - u0));
    } else if (drag.kind === "brush") {
      drag.points.push([where.u, where.v]);
      drawStroke(drag.points);
    }
  });

  frame.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    if (drag?.kind === "box") model.save_changes();
    if (drag?.kind === "brush") addStroke(drag.points);
    if (pointers.size === 0) drag = null;
  });

  // the browser took the gesture over, to scroll the page: undo what it began
  frame.addEventListener("pointercancel", (event) => {
    pointers.delete(event.pointerId);
    if (drag?.kind === "line") setSplit(drag.split);
    if (drag?.kind === "box") model.set("box", drag.box);
    drag = null;
  });

  frame.addEventListener("pointerleave", () => ($(".sg-readout").textContent = ""));

  frame.addEventListener(
    "wheel",
    (event) => {
      const zoom = model.get("view")[0];
      if (event.deltaY > 0 && zoom <= 1) return; // let the page scroll
      event.preventDefault();
      const { s, t } = at(event);
      zoomAt(Math.exp(-0.002 * clamp(event.deltaY, -300, 300)), s, t);
    },
    { passive: false },
  );

  function readout({ u, v }) {
    if (!right.there || !right.img.naturalWidth || u < 0 || v < 0 || u >= 1 || v >= 1)
      return;
    const x = Math.floor(u * right.img.naturalWidth);
    const y = Math.floor(v * right.img.naturalHeight);
    const [a, b] = model.get("names");
    const words = [`x ${x}, y ${y}`];
    const seen = classAt(u, v);
    if (seen) words.push(seen);
    if (left.there) words.push(`${a}: ${left.read(u, v)}`);
    words.push(`${b}: ${right.read(u, v)}`);
    $(".sg-readout").textContent = words.join(" · ");
  }

  /** The name of the class at (u, v), in shares of the picture; nothing if unknown. */
  function classAt(u, v) {
    const [width, height] = model.get("classes_size");
    if (!width) return undefined;
    const at = Math.floor(v * height) * width + Math.floor(u * width);
    return model.get("class_names")[model.get("classes").getUint8(at)];
  }

  // ---- keys and buttons ----------------------------------------------------
  line.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowUp: STEP }[
      event.key
    ];
    const to = { Home: 0, End: 1 }[event.key];
    if (by === undefined && to === undefined) return;
    setSplit(to ?? model.get("split") + by);
    event.preventDefault();
    event.stopPropagation();
  });

  frame.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    const [zoom, cx, cy] = model.get("view");
    if (event.key === "+" || event.key === "=") zoomAt(1.5);
    else if (event.key === "-") zoomAt(1 / 1.5);
    else if (event.key === "0") setView(1, 0.5, 0.5);
    else if (arrow && model.get("pick") === "box") {
      const [t, l, h, w] = model.get("box");
      if (event.shiftKey) setBox(t, l, h + arrow[0], w + arrow[1]);
      else setBox(t + arrow[0], l + arrow[1], h, w);
      model.save_changes();
    } else if (arrow && zoom > 1)
      setView(zoom, cx + (5 * arrow[1]) / zoom, cy + (5 * arrow[0]) / zoom);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  $(".sg-in").addEventListener("click", () => zoomAt(1.5));
  $(".sg-out").addEventListener("click", () => zoomAt(1 / 1.5));
  $(".sg-fit").addEventListener("click", () => setView(1, 0.5, 0.5));
  $(".sg-save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = right.url;
    link.download = `${model.get("names")[1].replace(/[^\w]+/g, "-") || "picture"}.png`;
    link.click();
  });

  const watched = [
    [pictures, ["left", "right"]],
    [words, ["names", "caption", "left_scale", "right_scale"]],
    [place, ["split", "view"]],
    [mark, ["box", "pick"]],
    [marks, ["busy", "stale", "badge", "height", "caption", "empty"]],
  ];
  for (const [act, traits] of watched) {
    for (const trait of traits) model.on(`change:${trait}`, act);
  }
  pictures();
  mark();
  marks();
}

export default { render };
