// The network, away from the page so that the page never freezes.

import { bringBack, crop, fromBytes, pad, resize, toBytes } from "./picture.js";

const STAGES = ["frm", "sem", "sim"];
const LARGEST = 480 * 1024; // pixels that the network works on at once
let network; // {ort, sessions, how}, once it is loaded

/** onnxruntime-web and the three stages on one kind of device. */
async function load(device) {
  const bundle = device === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  const ort = await import(`./ort/${bundle}`);
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(4, navigator.hardwareConcurrency)
    : 1;
  ort.env.logLevel = "error";
  const sessions = {};
  for (const stage of STAGES) {
    const file = new URL(`./${stage}.onnx`, import.meta.url).href;
    sessions[stage] = await ort.InferenceSession.create(file, {
      executionProviders: [device],
    });
  }
  const threads = ort.env.wasm.numThreads;
  const how = device === "webgpu" ? "on the graphics card" : `${threads} thread(s)`;
  return { ort, sessions, how };
}

/** The three stages, one after the other; `after(stage, data)` hears of each. */
async function run({ ort, sessions }, picture, after = () => {}) {
  const shape = [1, 3, picture.height, picture.width];
  const rain = new ort.Tensor("float32", picture.data, shape);
  const { coarse } = await sessions.frm.run({ rain });
  after("coarse", coarse.data);
  const { classes } = await sessions.sem.run({ coarse });
  after("guidance", classes.data);
  const { refined } = await sessions.sim.run({ rain, coarse, classes });
  return refined.data;
}

/** A small picture of waves, to compare two devices on. */
function waves() {
  const [width, height] = [96, 64];
  const data = Float32Array.from({ length: 3 * width * height }, (_, i) => {
    return 0.5 + 0.4 * Math.sin(0.013 * i + 0.7 * (i % width));
  });
  return { data, width, height };
}

/** WebGPU where it gives the numbers of WebAssembly to half a step of 8 bits. */
async function choose() {
  const plain = await load("wasm");
  const wanted = await run(plain, waves()); // the browser compiles its loops for speed meanwhile
  if (!navigator.gpu || !(await navigator.gpu.requestAdapter())) return plain;
  try {
    const quick = await load("webgpu");
    const got = await run(quick, waves());
    const far = wanted.some((value, i) => !(Math.abs(value - got[i]) < 0.5 / 255));
    return far ? plain : quick;
  } catch {
    return plain;
  }
}

/** Derain one picture and post each stage as it is ready. */
async function derain({ id, rgba, width, height }) {
  const started = performance.now();
  const full = fromBytes(rgba, width, height);
  const scale = Math.min(1, Math.sqrt(LARGEST / (width * height)));
  const [w, h] = [width, height].map((n) => Math.max(1, Math.round(n * scale)));
  const small = scale < 1 ? resize(full, w, h) : full;
  const padded = pad(small);
  const cut = (data) => crop({ ...padded, data }, w, h);

  const data = await run(network, padded, (stage, stageData) => {
    const part = cut(stageData);
    const bytes = stage === "coarse" ? toBytes(part) : part.data;
    self.postMessage({ id, stage, width: w, height: h, bytes });
  });
  let refined = cut(data);
  if (small !== full) refined = bringBack(small, refined, full);
  const seconds = (performance.now() - started) / 1000;
  const bytes = toBytes(refined);
  self.postMessage({ id, stage: "refined", width, height, bytes, seconds, worked: [w, h] });
}

let queue = (async () => {
  network = await choose();
  self.postMessage({ stage: "ready", how: network.how });
})();
queue = queue.catch((fault) => self.postMessage({ stage: "fault", text: String(fault) }));

let newest = 0;
self.onmessage = ({ data }) => {
  newest = data.id;
  queue = queue.then(async () => {
    if (data.id !== newest || !network) return; // another picture was chosen meanwhile
    try {
      await derain(data);
    } catch (fault) {
      self.postMessage({ id: data.id, stage: "fault", text: String(fault) });
    }
  });
};
