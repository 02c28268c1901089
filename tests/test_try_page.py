"""The page that derains in the visitor's own browser, in a real browser."""

import base64
import importlib.util
import io
import json
import shutil
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sginet import SGINet
from sginet.images import as_batch

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on this machine"),
]
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
MINUTES = 60_000


def try_page():
    """The script that builds the page, as a module."""
    spec = importlib.util.spec_from_file_location("try_page", ROOT / ".ci/try_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built page."""
    folder = tmp_path_factory.mktemp("try")
    assert try_page().build(folder)
    return folder


@pytest.fixture(scope="module")
def address(built):
    """The page, served with the headers that allow threads."""
    handler = partial(try_page().IsolatedHandler, directory=built)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """Starts Chromium; one for the module, since Playwright runs once in a thread."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        yield partial(p.chromium.launch, executable_path=CHROMIUM)


@pytest.fixture(scope="module")
def browser(chromium):
    browser = chromium(args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address):
    """The page with its first sample derained; `page.seen` holds its requests."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.seen, page.faults = [], []
    page.on("request", lambda request: page.seen.append(request))
    page.on("pageerror", lambda fault: page.faults.append(str(fault)))
    page.goto(address)
    wait_for(page, 1)
    yield page
    assert page.faults == []
    page.close()


def wait_for(page, number):
    """Wait until the `number`-th picture is done."""
    page.wait_for_function(
        "number => document.body.dataset.done === String(number)",
        arg=number,
        timeout=5 * MINUTES,
    )


def canvas(page, name="after"):
    """The pixels of a canvas, H×W×3."""
    url = page.evaluate("name => document.getElementById(name).toDataURL()", name)
    png = base64.b64decode(url.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def derained(file, **options):
    picture = Image.open(file).convert("RGB")
    return np.asarray(SGINet.from_pretrained("tiny").derain(picture, **options))


def screenshot(page, name):
    """Kept where CI collects pictures."""
    folder = ROOT / "out" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"try_{name}.png")


def shown_classes(page, built):
    """The class map that the page shows, H×W, by its colours."""
    page.click("[data-view=guidance]")
    colours = canvas(page)
    page.click("[data-view=refined]")
    known = json.loads((built / "network.json").read_text(encoding="utf-8"))["classes"]
    distance = [np.abs(colours - item["colour"]).sum(-1) for item in known]
    assert np.min(distance, 0).max() == 0
    return torch.from_numpy(np.argmin(distance, 0))


def by_python(file, classes):
    """What Python makes of a picture where SIM reads these classes, and the margin of SEM's own.

    Where two classes are within a hundredth of the scores' range of each other, two runtimes
    may take either one; beyond that the maps must be the same."""
    model, rain = SGINet.from_pretrained("tiny"), as_batch(file)[0]
    height, width = classes.shape

    def give(module, args):
        guidance = args[2].clone()
        guidance[..., :height, :width] = classes
        return (*args[:2], guidance)

    model.sim.register_forward_pre_hook(give)
    with torch.no_grad():
        out = model(rain)
        best = out.scores[..., :height, :width].topk(2, 1)
    margin = (best.values[0, 0] - best.values[0, 1]).numpy()
    refined = out.refined[0].permute(1, 2, 0).mul(255).round().numpy().astype(int)
    return refined, margin, best.indices[0, 0]


def test_the_page_gives_the_pictures_of_python(page, built):
    assert page.evaluate("crossOriginIsolated")
    for number, sample in enumerate(("street", "photograph", "avenue"), 1):
        if number > 1:
            page.click(f"[data-sample={sample}]")
            wait_for(page, number)
        classes = shown_classes(page, built)
        file = built / "samples" / f"{sample}.png"
        wanted, margin, own = by_python(file, classes)
        assert np.abs(canvas(page) - wanted).max() <= 1, sample
        assert margin[(classes != own).numpy()].max(initial=0) < 0.01, sample
    screenshot(page, "samples")


def test_nothing_leaves_the_machine_and_the_network_is_small(page, address, built):
    assert {request.method for request in page.seen} == {"GET"}
    urls = [r.url for r in page.seen if not r.url.startswith(("blob:", "data:"))]
    assert all(url.startswith(address) for url in urls)
    assert sum(f.stat().st_size for f in built.glob("*.onnx")) <= 10 * 2**20
    assert "never leaves this machine" in page.inner_text("header")


def test_the_divider_follows_mouse_and_keys(page):
    box = page.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    page.mouse.up()
    split = "document.getElementById('stage').style.getPropertyValue('--split')"
    assert abs(float(page.evaluate(split).rstrip("%")) - 25) < 2
    before = page.evaluate(split)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(split) != before
    assert "% rain" in page.get_attribute("#divider", "aria-valuetext")


def test_the_views_and_the_legend(page):
    page.click("[data-view=guidance]")
    names = page.inner_text("#legend").splitlines()
    assert 1 < len(names) < 19 and page.locator("#legend").is_visible()
    screenshot(page, "guidance")
    page.click("[data-view=removed]")
    assert page.locator("#legend").is_hidden()
    assert abs(canvas(page).mean() - 128) < 40
    page.click("[data-view=coarse]")
    assert page.get_attribute("[data-view=coarse]", "aria-pressed") == "true"


def test_an_own_picture_and_its_download(page, built, tmp_path):
    sample = Image.open(built / "samples" / "avenue.png")
    own = tmp_path / "own picture.png"
    sample.crop((40, 30, 291, 217)).save(own)  # no multiples of 32
    page.set_input_files("#file", own)
    wait_for(page, 2)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "own picture_derained.png"
    saved = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert (saved == canvas(page)).all()
    assert np.abs(saved - derained(own)).max() <= 1


def test_a_large_picture_is_worked_on_smaller_and_brought_back(page, built, tmp_path):
    large = tmp_path / "large.png"
    sample = Image.open(built / "samples" / "street.png")
    sample.resize((1200, 800), Image.Resampling.BICUBIC).save(large)
    page.set_input_files("#file", large)
    wait_for(page, 2)
    assert "worked on at" in page.inner_text("#status")
    difference = np.abs(canvas(page) - derained(large, work_pixels=480 * 1024))
    assert difference.shape == (800, 1200, 3)
    assert difference.max() <= 2 and difference.mean() < 0.1


# a graphics card in software, so that WebGPU can be seen without one
GRAPHICS = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
HAS_ADAPTER = "navigator.gpu?.requestAdapter().then(Boolean) ?? false"
# WebGPU's part of onnxruntime-web, with a network that changes nothing
WRONG_NUMBERS = """
import * as ort from "./ort.wasm.min.mjs";
export const { env, Tensor } = ort;
const run = async ({ rain, coarse }) => ({ coarse: rain, classes: coarse, refined: rain });
export const InferenceSession = { create: async () => ({ run }) };
"""


@pytest.fixture(scope="module")
def graphics(chromium):
    """A browser that offers WebGPU."""
    browser = chromium(args=[*FLAGS[:2], *GRAPHICS])
    yield browser
    browser.close()


@pytest.mark.parametrize("right", [True, False])
def test_webgpu_is_used_only_with_the_same_numbers(graphics, address, built, right):
    page = graphics.new_page()
    if not right:
        page.context.route(
            "**/ort.webgpu.min.mjs",
            lambda route: route.fulfill(
                body=WRONG_NUMBERS, content_type="text/javascript"
            ),
        )
    page.goto(address)
    if not page.evaluate(HAS_ADAPTER):
        pytest.skip("this Chromium has no adapter for WebGPU")
    wait_for(page, 1)
    how = page.evaluate("document.body.dataset.ready")
    assert right or "thread" in how
    wanted = derained(built / "samples" / "street.png")
    assert np.abs(canvas(page) - wanted).max() <= 1
    page.close()


def test_what_is_no_picture_is_said(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.wait_for_function(
        "document.getElementById('status').textContent.includes('notes.png')"
    )
    assert "not a picture" in page.inner_text("#status")


def test_a_phone_and_the_dark(browser, address):
    page = browser.new_page(
        viewport={"width": 390, "height": 800}, has_touch=True, color_scheme="dark"
    )
    page.goto(address)
    wait_for(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator("button:visible").all():
        assert button.bounding_box()["height"] >= 24
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(30, 33, 41)"
    screenshot(page, "phone")
    page.close()


def test_without_npm_the_page_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not try_page().build(tmp_path / "page")
    assert "npm is missing" in capsys.readouterr().out
    assert not (tmp_path / "page").exists()
