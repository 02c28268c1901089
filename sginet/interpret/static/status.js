/** The one live region of an explorer: what it does, what failed, a lost kernel. */

const PING = 3000; // ms between two questions to the kernel
const LOST = 15000; // ms without an answer after which it counts as gone
const LAYOUT = `
  <div class="sg-status"><span class="sg-spinner" aria-hidden="true"></span>
    <span role="status" aria-live="polite"></span></div>
  <div class="sg-lost" role="alert" hidden></div>`;

/** Name the sliders for a screen reader: ipywidgets gives their handles no label. */
function nameSliders(root) {
  for (const row of root.querySelectorAll(".widget-inline-hbox")) {
    const label = row.querySelector("label")?.textContent.trim();
    const value = row.querySelector(".widget-readout")?.textContent.trim();
    for (const handle of row.querySelectorAll(".noUi-handle")) {
      if (label) handle.setAttribute("aria-label", label);
      if (value) handle.setAttribute("aria-valuetext", value);
    }
  }
}

function render({ model, el }) {
  el.innerHTML = LAYOUT;
  const words = el.querySelector("[role=status]");
  const lost = el.querySelector(".sg-lost");

  function show() {
    const fault = model.get("fault");
    words.textContent = fault
      ? `Not possible: ${model.get("text")}`
      : model.get("text");
    el.classList.toggle("sg-fault", fault);
    el.classList.toggle("sg-working", model.get("busy"));
  }

  let heard = Date.now();
  function showLost(gone) {
    if (gone === !lost.hidden) return;
    lost.hidden = !gone;
    if (!gone) return;
    const page = document.body.dataset.voila !== undefined;
    lost.innerHTML = page
      ? "Connection lost. <button>Reload the page</button>"
      : "The kernel does not answer. If it is busy, wait; else run the cell again.";
    lost.querySelector("button")?.addEventListener("click", () => location.reload());
  }
  const timer = setInterval(() => {
    if (!el.isConnected || document.hidden || !el.getClientRects().length) {
      heard = Date.now();
      return;
    }
    try {
      model.send({ ping: true });
    } catch {
      // the connection is closed: no answer will come
    }
    showLost(Date.now() - heard > LOST);
  }, PING);
  model.on("msg:custom", () => {
    heard = Date.now();
    showLost(false);
  });

  let observer = null;
  requestAnimationFrame(() => {
    const root = el.closest(".sg-explorer");
    if (!root) return;
    nameSliders(root);
    observer = new MutationObserver(() => nameSliders(root));
    observer.observe(root, { childList: true, subtree: true, characterData: true });
  });

  for (const trait of ["text", "fault", "busy"]) model.on(`change:${trait}`, show);
  show();
  // an answer may have come while the page was opening: ask for what is shown
  model.send({ hello: true });
  return () => {
    clearInterval(timer);
    observer?.disconnect();
  };
}

export default { render };
