/** The state of the page in its address, so that a link opens the same view. */

function render({ model, el }) {
  el.hidden = true;
  const read = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

  function write() {
    const hash = new URLSearchParams(model.get("state")).toString();
    history.replaceState(
      null,
      "",
      hash ? `#${hash}` : location.pathname + location.search,
    );
  }

  function ask() {
    model.set("wanted", read());
    model.save_changes();
  }

  if (location.hash.length > 1) ask();
  else write();
  model.on("change:state", write);
  window.addEventListener("hashchange", ask);
  document.title = model.get("title");
  return () => window.removeEventListener("hashchange", ask);
}

export default { render };
