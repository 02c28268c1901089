// Sliders over pictures that were computed before: no kernel, no network.
for (const figure of document.querySelectorAll(".sginet-slider:not([data-live])")) {
  figure.dataset.live = "";
  const inputs = [...figure.querySelectorAll("input")];
  const output = figure.querySelector("output");

  const shows = {
    compare() {
      figure.style.setProperty("--at", `${inputs[0].value}%`);
    },
    steps() {
      const pictures = figure.querySelectorAll(".stage img");
      pictures.forEach((img, i) => (img.hidden = i !== inputs[0].valueAsNumber));
      const chosen = pictures[inputs[0].valueAsNumber];
      output.textContent = chosen.dataset.label;
      inputs[0].setAttribute("aria-valuetext", chosen.dataset.label);
    },
    plane() {
      const [column, row] = inputs.map((input) => input.valueAsNumber);
      const { values, arrows } = JSON.parse(figure.dataset.plane);
      const last = values.length - 1;
      const [x, y] = [(100 * column) / last, 100 - (100 * row) / last];
      const [dx, dy] = arrows[row][column];
      const set = (part, names) => {
        for (const [name, value] of Object.entries(names)) {
          figure.querySelector(part).setAttribute(name, value);
        }
      };
      set("line", { x1: x, y1: y, x2: x + 12 * dx, y2: y - 12 * dy });
      set("circle", { cx: x, cy: y });
      output.textContent = `${figure.dataset.name} ${values[row][column].toFixed(2)}`;
    },
  };
  const show = shows[figure.dataset.kind];
  inputs.forEach((input) => input.addEventListener("input", show));

  const plane = figure.querySelector(".plane");
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = plane.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (box.bottom - event.clientY) / box.height];
    inputs.forEach((input, i) => (input.value = Math.round(share[i] * input.max)));
    show();
  };
  plane?.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    drag(event);
  });
  plane?.addEventListener("pointermove", drag);
  show();
}
