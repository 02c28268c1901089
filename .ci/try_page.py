"""Build the page that derains in the visitor's own browser: `python .ci/try_page.py FOLDER`.

The folder then holds nbs/try/ (the page), the shipped network as three ONNX graphs, a few
samples, and onnxruntime-web from npm. Nothing is fetched when the page runs. With
`--serve PORT` the folder is served on 127.0.0.1 with the headers that let WebAssembly
use threads.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

from sginet import SGINet, draw_scene, render
from sginet.images import CLASS_COLOURS, CLASSES, as_batch, sample_photo, save_image
from sginet.models.export import traceable
from sginet.models.sem import class_guidance

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "nbs" / "try"
ORT = "onnxruntime-web@1.30.0"
ORT_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


class Semantics(nn.Module):
    """The class of each pixel, `N×1×H×W` uint8, as SEM sees the coarse picture."""

    def __init__(self, sem: nn.Module):
        super().__init__()
        self.sem = sem

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        return class_guidance(self.sem(coarse)).to(torch.uint8)


class Refinement(nn.Module):
    """SIM on a class map of bytes."""

    def __init__(self, sim: nn.Module):
        super().__init__()
        self.sim = sim

    def forward(self, rain, coarse, classes):
        return self.sim(rain, coarse, classes.to(rain.dtype))


def store_as_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Keep weights as float16 in the file; the graph computes in float32 as before."""
    graph, casts = proto.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 64:
            continue
        name = tensor.name
        half = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
        tensor.CopyFrom(half)
        casts.append(
            helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def write_graph(module: nn.Module, inputs: dict, output: str, file: Path) -> None:
    """Write one stage as ONNX for one picture of any height and width."""
    sizes = tuple({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes=sizes, strict=False
        )
        proto = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        ).model_proto
    for thing in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer):
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")
    del proto.graph.value_info[:]
    onnx.save(store_as_half(proto), file)


def write_network(model: SGINet, folder: Path) -> None:
    """Write the three stages of the network, and what the page must know of it."""
    net = traceable(model)
    rain, coarse = torch.zeros(2, 1, 3, 128, 160)  # two, or export takes them for one
    classes = torch.zeros(1, 1, 128, 160, dtype=torch.uint8)
    write_graph(net.frm, {"rain": rain}, "coarse", folder / "frm.onnx")
    write_graph(Semantics(net.sem), {"coarse": coarse}, "classes", folder / "sem.onnx")
    write_graph(
        Refinement(net.sim),
        {"rain": rain, "coarse": coarse, "classes": classes},
        "refined",
        folder / "sim.onnx",
    )
    palette = [
        {"name": name, "colour": colour}
        for name, colour in zip(CLASSES, CLASS_COLOURS.tolist())
    ]
    (folder / "network.json").write_text(
        json.dumps({"classes": palette}), encoding="utf-8"
    )


def write_samples(folder: Path) -> None:
    """Write rainy pictures as PNG: two drawn streets and a photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "street": draw_scene(503, 320, 480).image,
        "photograph": as_batch(sample_photo())[0],
        "avenue": draw_scene(511, 320, 480).image,
    }
    for (name, clean), rate in zip(pictures.items(), (100, 100, 200)):
        save_image(
            render(clean, rate, seed=7).rainy, folder / f"{name}.png", overwrite=True
        )


def fetch_runtime(folder: Path) -> None:
    """Copy onnxruntime-web's files from its npm package."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            ["npm", "pack", "--silent", ORT],
            cwd=work,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        [archive] = Path(work).glob("*.tgz")
        with tarfile.open(archive) as packed:
            for name in ORT_FILES:
                with packed.extractfile(f"package/dist/{name}") as source:
                    (folder / name).write_bytes(source.read())
    (folder / "NOTICE.txt").write_text(
        f"{ORT}, MIT licence, Microsoft\n", encoding="utf-8"
    )


def build(folder: Path, runtime: Path | None = None) -> bool:
    """Write the page to `folder`; False, with a line that says so, where npm is missing.

    `runtime` is a folder with onnxruntime-web's files, where they are at hand already.
    """
    if runtime is None and shutil.which("npm") is None:
        print("npm is missing: the page that derains in the browser is left out")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    if runtime is None:
        fetch_runtime(folder / "ort")
    else:
        shutil.copytree(runtime, folder / "ort", dirs_exist_ok=True)
    write_samples(folder / "samples")
    write_network(SGINet.from_pretrained("tiny"), folder)
    graphs = sum(file.stat().st_size for file in folder.glob("*.onnx"))
    print(f"{folder}: the network takes {graphs / 1e6:.1f} MB")
    return True


class IsolatedHandler(SimpleHTTPRequestHandler):
    """Static files with the headers of cross-origin isolation, which threads need."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args) -> None:
        pass


def serve(folder: Path, port: int) -> None:
    """Serve `folder` on 127.0.0.1 until Ctrl-C."""
    handler = partial(IsolatedHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--serve", type=int, metavar="PORT")
    args = parser.parse_args()
    if not build(args.folder):
        return 1
    if args.serve is not None:
        serve(args.folder, args.serve)
    return 0


if __name__ == "__main__":
    sys.exit(main())
