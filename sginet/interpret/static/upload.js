/** A picture of the user's own: chosen, dropped on the explorer, or pasted. */

const LAYOUT = `
  <label class="sg-upload">
    <span>your own picture: choose, drop or paste one</span>
    <input type="file" accept="image/*">
  </label>`;

/** The bytes to send: the file as it is, or a smaller copy where it has too many. */
async function prepare(file, most, side) {
  if (file.size <= most) return file.arrayBuffer();
  const bitmap = await createImageBitmap(file);
  if (bitmap.width * bitmap.height > 64e6) {
    throw new Error(`${bitmap.width}×${bitmap.height} is more than 64 megapixels`);
  }
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  return blob.arrayBuffer();
}

function render({ model, el }) {
  el.innerHTML = LAYOUT;
  const input = el.querySelector("input");

  async function send(file) {
    if (!file) return;
    let content = new ArrayBuffer(0);
    let problem = "";
    try {
      content = await prepare(file, model.get("most"), model.get("side"));
    } catch (fault) {
      const megabytes = (file.size / 1e6).toFixed(1);
      problem = fault.message.includes("megapixels")
        ? fault.message
        : `not a picture that can be read, and too large to send (${megabytes} MB)`;
    }
    model.set("content", new DataView(content));
    model.set("name", file.name || "pasted.png");
    model.set("problem", problem);
    model.set("count", model.get("count") + 1);
    model.save_changes();
  }

  input.addEventListener("change", async () => {
    await send(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });

  const visible = () => el.isConnected && el.getClientRects().length > 0;

  function paste(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((f) =>
      f.type.startsWith("image/"),
    );
    if (!file || !visible()) return;
    event.preventDefault();
    send(file);
  }
  document.addEventListener("paste", paste);

  let zone = null;
  const over = (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    zone.classList.add("sg-dropping");
  };
  const leave = () => zone.classList.remove("sg-dropping");
  const drop = (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    leave();
    send(event.dataTransfer.files[0]);
  };
  requestAnimationFrame(() => {
    zone = el.closest(".sg-explorer") ?? el;
    zone.addEventListener("dragover", over);
    zone.addEventListener("dragleave", leave);
    zone.addEventListener("drop", drop);
  });

  return () => {
    document.removeEventListener("paste", paste);
    zone?.removeEventListener("dragover", over);
    zone?.removeEventListener("dragleave", leave);
    zone?.removeEventListener("drop", drop);
  };
}

export default { render };
