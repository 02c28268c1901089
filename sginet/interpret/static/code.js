/** A button that copies the Python for what is shown; the text can also be read. */

function render({ model, el }) {
  el.innerHTML = `
    <div class="sg-code">
      <button>copy the Python for this</button>
      <details><summary>show it</summary><pre></pre></details>
    </div>`;
  const button = el.querySelector("button");
  const pre = el.querySelector("pre");

  function show() {
    pre.textContent = model.get("code");
  }

  /** Copy at once, also where a page may not use the clipboard's newer interface. */
  function copyAtOnce() {
    const fill = (event) => {
      event.clipboardData.setData("text/plain", model.get("code"));
      event.preventDefault();
      event.stopImmediatePropagation();
    };
    document.addEventListener("copy", fill, { capture: true, once: true });
    const done = document.execCommand("copy");
    document.removeEventListener("copy", fill, { capture: true });
    return done;
  }

  button.addEventListener("click", async () => {
    try {
      if (!copyAtOnce()) await navigator.clipboard.writeText(model.get("code"));
      button.textContent = "copied";
    } catch {
      el.querySelector("details").open = true;
      getSelection().selectAllChildren(pre);
      button.textContent = "select and copy it below";
    }
    setTimeout(() => (button.textContent = "copy the Python for this"), 2500);
  });

  model.on("change:code", show);
  show();
}

export default { render };
