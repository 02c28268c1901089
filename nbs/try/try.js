// The page: choosing a picture, the divider, the views. The work is done in worker.js.

const SAMPLES = ["street", "photograph", "avenue"];
const MOST_PIXELS = 64e6;
const find = (id) => document.getElementById(id);
const [before, after] = [find("before"), find("after")];
const stage = find("stage");

let classes = []; // name and colour of each class
let name = "picture"; // of the file that is downloaded
let id = 0; // of the newest picture
let results = {}; // of the picture shown, by view
let view = "refined";

const worker = new Worker("worker.js", { type: "module" });

function say(text, done) {
  find("status").textContent = text;
  if (done !== undefined) find("progress").value = done;
}

/** Draw bytes of any size into the canvas of the result. */
function draw(canvas, { bytes, width, height }) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
}

/** A class map as colours, and the classes seen on at least 1 % of it as a legend. */
function coloured({ bytes, width, height }) {
  const rgba = new Uint8ClampedArray(4 * bytes.length);
  const count = new Array(classes.length).fill(0);
  bytes.forEach((value, i) => {
    count[value] += 1;
    rgba.set([...classes[value].colour, 255], 4 * i);
  });
  const seen = classes.filter((_, i) => count[i] >= 0.01 * bytes.length);
  find("legend").replaceChildren(
    ...seen.map((item) => {
      const entry = document.createElement("li");
      const patch = document.createElement("span");
      patch.style.background = `rgb(${item.colour.join(" ")})`;
      entry.append(patch, item.name);
      return entry;
    }),
  );
  return { bytes: rgba, width, height };
}

/** What was taken away, around middle grey, three times as strong. */
function removed(rain, { bytes, width, height }) {
  const rgba = new Uint8ClampedArray(bytes.length);
  for (let i = 0; i < bytes.length; i++) {
    rgba[i] = i % 4 === 3 ? 255 : 128 + 3 * (rain.bytes[i] - bytes[i]);
  }
  return { bytes: rgba, width, height };
}

function show() {
  const shown = results[view] ?? results.refined ?? results.coarse;
  if (shown) draw(after, shown);
  find("shown").textContent = view;
  find("legend").hidden = view !== "guidance" || !results.guidance;
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
}

const MESSAGES = {
  ready: ({ how }) => {
    document.body.dataset.ready = how;
    if (!id) say(`The network is loaded (${how}).`, 0);
  },
  coarse: (message) => {
    results.coarse = message;
    say("FRM is done: this is the coarse picture. SEM reads it.", 2);
  },
  guidance: (message) => {
    results.guidance = coloured(message);
    say("SEM is done. SIM refines the picture.", 3);
  },
  refined: (message) => {
    results.refined = message;
    results.removed = removed(results.rain, message);
    const { width, height, seconds, worked } = message;
    const at = worked[0] === width ? "" : `, worked on at ${worked.join("×")}`;
    say(`${width}×${height}${at}: ${seconds.toFixed(1)} s.`, 4);
    stage.classList.remove("working");
    find("download").disabled = false;
    document.body.dataset.done = String(message.id);
  },
  fault: ({ text }) => {
    stage.classList.remove("working");
    say(`This did not work: ${text}`, 0);
  },
};

worker.onmessage = ({ data }) => {
  if (data.id !== undefined && data.id !== id) return; // of an earlier picture
  MESSAGES[data.stage](data);
  if (data.stage !== "ready") show();
};
worker.onerror = () => MESSAGES.fault({ text: "this browser cannot run the network" });

/** Put a picture on the page and have it derained. */
async function open(blob, label) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    say(`${label} is not a picture that this browser can read.`, 0);
    return;
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    say(`${label} has more than ${MOST_PIXELS / 1e6} megapixels.`, 0);
    return;
  }
  stage.style.setProperty("--ratio", String(width / height));
  before.width = width;
  before.height = height;
  const context = before.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rain = { bytes: context.getImageData(0, 0, width, height).data, width, height };
  id += 1;
  name = label.replace(/\.[^.]*$/, "");
  results = { rain, refined: undefined };
  draw(after, rain);
  stage.classList.add("working");
  find("download").disabled = true;
  say("FRM takes out the rain, coarsely.", 1);
  worker.postMessage({ id, rgba: rain.bytes, width, height });
}

/** Only one sample is marked, and none while an own picture is shown. */
function mark(sample) {
  for (const button of find("samples").children) {
    button.setAttribute("aria-pressed", String(button.dataset.sample === sample));
  }
}

function openOwn(file) {
  if (!file) return;
  mark(null);
  open(file, file.name || "pasted picture");
}

async function openSample(sample) {
  mark(sample);
  const answer = await fetch(`samples/${sample}.png`);
  open(await answer.blob(), `${sample}.png`);
}

for (const sample of SAMPLES) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.dataset.sample = sample;
  image.src = `samples/${sample}.png`;
  image.alt = `Sample: ${sample}`;
  button.append(image);
  button.addEventListener("click", () => openSample(sample));
  find("samples").append(button);
}

for (const input of [find("file"), find("camera")]) {
  input.addEventListener("change", () => {
    openOwn(input.files[0]);
    input.value = "";
  });
}
for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    view = button.dataset.view;
    show();
  });
}
find("divider").addEventListener("input", ({ target }) => {
  stage.style.setProperty("--split", `${target.value}%`);
  target.setAttribute("aria-valuetext", `${Math.round(target.value)} % rain`);
});
find("download").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  draw(canvas, results.refined);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name}_derained.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
});
window.addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find((f) => f.type.startsWith("image/"));
  openOwn(file);
});
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
window.addEventListener("dragleave", () => document.body.classList.remove("over"));
window.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  openOwn(event.dataTransfer.files[0]);
});

classes = (await (await fetch("network.json")).json()).classes;
openSample(SAMPLES[0]);
