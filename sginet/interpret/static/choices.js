/** One choice of several, by thumbnails; a radio group for a screen reader. */

function render({ model, el }) {
  el.innerHTML = `<div class="sg-choices" role="radiogroup"></div>`;
  const group = el.querySelector(".sg-choices");

  function choose(key, focus = false) {
    model.set("value", key);
    model.save_changes();
    if (focus) group.querySelector(`[aria-checked=true]`)?.focus();
  }

  function mark() {
    const value = model.get("value");
    const known = model.get("items").some((item) => item.key === value);
    [...group.children].forEach((button, i) => {
      const chosen = button.dataset.key === value;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen || (!known && i === 0) ? 0 : -1;
    });
  }

  function build() {
    group.setAttribute("aria-label", model.get("label"));
    const focused = group.contains(document.activeElement);
    group.replaceChildren(
      ...model.get("items").map(({ key, name, image }) => {
        const button = document.createElement("button");
        button.dataset.key = key;
        button.title = name;
        button.setAttribute("role", "radio");
        const img = document.createElement("img");
        img.src = image;
        img.alt = "";
        const words = document.createElement("span");
        words.textContent = name;
        button.append(img, words);
        button.addEventListener("click", () => choose(key));
        return button;
      }),
    );
    mark();
    // the chosen one is in view, without scrolling the page
    const chosen = group.querySelector("[aria-checked=true]");
    if (chosen) group.scrollTop = chosen.offsetTop - group.offsetTop;
    if (focused) chosen?.focus({ preventScroll: true });
  }

  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const keys = model.get("items").map((item) => item.key);
    const next = (keys.indexOf(model.get("value")) + step + keys.length) % keys.length;
    choose(keys[next], true);
  });

  model.on("change:items", build);
  model.on("change:value", mark);
  build();
}

export default { render };
