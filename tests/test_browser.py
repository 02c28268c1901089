"""The explorers in a real browser: a Voila page and a JupyterLab notebook. Screenshots are left in out/screenshots."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import nbformat
import pytest
from conftest import ROOT

from sginet.images import sample_photo

PLACES = "chromium", "chromium-browser", "google-chrome"
SHOTS = ROOT / "out" / "screenshots"
LONG = 300_000  # ms; a busy machine may need some for a picture
HASH = """async ([img, old]) => { try { const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer());
    let h = 5381; for (const b of bytes) h = (h * 33 ^ b) >>> 0; return bytes.length > 0 && h !== old ? h : null; } catch (e) { return null; } }"""  # the picture may be replaced meanwhile


@pytest.fixture(scope="module")
def browser():
    """Chromium; without it the tests are skipped, but in continuous integration that is a failure."""
    found = next((path for name in PLACES if (path := shutil.which(name))), None)
    if not found:
        refuse = (
            pytest.fail
            if os.environ.get("CI") or os.environ.get("SGINET_CI")
            else pytest.skip
        )
        refuse(
            f"no browser: none of {', '.join(PLACES)} is installed (apt-get install --no-install-recommends chromium)"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=found,
            headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield chromium
        chromium.close()


@contextmanager
def serving(args, log, **env):
    """A server on a free port of this machine, from its first answer to the end of the block; gives its address."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(log, "w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *args, f"--port={port}"],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **env},
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
                except urllib.error.HTTPError:
                    pass
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.25)
                    continue
                break
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


class Panel:
    """What is visible of an explorer, by the labels that a person reads."""

    def __init__(self, page, tab=None):
        self.page = page
        if tab:
            page.get_by_role("tab", name=tab, exact=True).click()

    def seen(self, selector):
        return self.page.locator(selector).locator("visible=true")

    def field(self, label, kind):
        return self.seen(
            f"xpath=//div[contains(@class, 'widget-inline-hbox')][label[normalize-space()='{label}']]//{kind}"
        ).first

    def hash(self, selector, i=0, old=None):
        """A hash of a picture's bytes, once it has another one than `old`."""
        img = self.page.locator(selector).locator("visible=true").nth(i)
        img.wait_for(timeout=LONG)
        for _ in range(
            LONG // 50
        ):  # wait_for_function would take the promise for an answer
            if (
                found := self.page.evaluate(HASH, [img.element_handle(), old])
            ) is not None:
                return found
            self.page.wait_for_timeout(50)
        pytest.fail(f"picture {i} of {selector} did not change")

    @contextmanager
    def changes(self, selector=".sg-right", i=0):
        """The picture must be another one after the block, and all wishes answered before and after."""
        self.settled()
        before = self.hash(selector, i)
        yield
        self.hash(selector, i, before)
        self.settled()

    def settled(self):
        self.seen("[role=status]:has-text('Computing')").first.wait_for(
            state="hidden", timeout=LONG
        )

    def status(self, words, **kwargs):
        self.seen(
            f"[role=status]:has-text('{words}'), [role=alert]:has-text('{words}')"
        ).first.wait_for(timeout=LONG, **kwargs)

    def choose(self, label, value):
        self.field(label, "select").select_option(value)

    def press(self, label, key="ArrowRight", n=1):
        self.field(label, "*[contains(@class, 'noUi-handle')]").focus()
        for _ in range(n):
            self.page.keyboard.press(key)

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        self.page.set_viewport_size(
            {**size, "height": 1600}
        )  # the page scrolls inside itself
        self.page.screenshot(path=SHOTS / f"{name}.png")
        self.page.set_viewport_size(size)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    log = tmp_path_factory.mktemp("voila") / "log"
    with serving(
        ["voila", "nbs/app.ipynb", "--no-browser", "--Voila.ip=127.0.0.1"], log
    ) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address, timeout=LONG)
        page.locator(".sg-right[src]").first.wait_for(timeout=LONG)
        yield page
        page.close()


def test_rain_by_every_control(page, tmp_path):
    rain = Panel(page, "Rain")
    with rain.changes():
        rain.choose("work at, px wide", "256")
    rain.shot("rain")
    for label in "rain, mm/h", "wind, m/s", "nearest drop, m", "which drops":
        with rain.changes():
            rain.press(label, n=3)
    with rain.changes():
        rain.choose("picture", "drawn street 2")
    for layer in (
        "distance",
        "light of the streaks",
        "share covered by drops",
        "light let through",
        "behind the streaks",
        "the rainy picture",
    ):
        with rain.changes():
            rain.choose("show", layer)
    line = rain.seen(".sg-split input")
    line.focus()
    before = rain.seen(".sg-left").evaluate("e => e.style.clipPath")
    page.keyboard.press("ArrowLeft")
    assert rain.seen(".sg-left").evaluate("e => e.style.clipPath") != before


def test_upload_good_bad_and_large(page, tmp_path):
    rain = Panel(page, "Rain")
    sample_photo().save(tmp_path / "china.jpg")
    (tmp_path / "notes.png").write_text("no picture at all")
    (tmp_path / "large.png").write_bytes(
        bytes(12_000_000)
    )  # would break the connection if it were sent
    chooser = rain.seen(".sg-upload input")
    with rain.changes():
        chooser.set_input_files(tmp_path / "china.jpg")
    assert rain.field("picture", "select").input_value() == "my own"
    kept = rain.hash(".sg-right")
    for name, words in (
        ("notes.png", "notes.png: not a picture"),
        ("large.png", "large.png: 12.0 MB"),
    ):
        chooser.set_input_files(tmp_path / name)
        rain.status(words)
        assert rain.hash(".sg-right") == kept
    rain.shot("rain-upload-refused")
    with rain.changes():
        rain.choose("picture", "drawn street 1")  # and all goes on
    rain.status("Answered")


def test_guidance_switched_and_painted(page):
    guide = Panel(page, "Guidance")
    with guide.changes():
        guide.choose("work at, px wide", "256")
    guide.choose("right", "refined, other guidance")  # as yet the same
    for kind in (
        "names shuffled",
        "no map: one class everywhere",
        "true labels",
        "from another street",
    ):
        with guide.changes():
            guide.choose("guidance", kind)
    with guide.changes():
        guide.choose("right", "difference by other guidance")
    with guide.changes(".sg-left"):
        guide.choose("left", "classes given to SIM")
    with guide.changes(".sg-left"):
        guide.choose("guidance", "painted box")
    frame = guide.seen(".sg-frame").first
    where = frame.bounding_box()
    with guide.changes(".sg-left"):
        page.mouse.move(
            where["x"] + 0.1 * where["width"], where["y"] + 0.6 * where["height"]
        )
        page.mouse.down()
        page.mouse.move(
            where["x"] + 0.5 * where["width"],
            where["y"] + 0.9 * where["height"],
            steps=4,
        )
        page.mouse.up()
    with guide.changes(".sg-left"):
        page.keyboard.press("ArrowRight")  # the box has the focus now
    with guide.changes(".sg-left"):
        page.keyboard.press("Shift+ArrowUp")
    with guide.changes(".sg-left"):
        guide.choose("class", "car")
    with guide.changes(".sg-left"):
        guide.press("opacity of classes", n=4)
    with guide.changes(".sg-left"):
        guide.choose("colours", "Cityscapes")
    with guide.changes(".sg-left"):
        guide.choose("colours", "for every eye")
    with guide.changes(i=1), guide.changes(".sg-attention"):
        guide.choose("layer", "sim.encoder.3")
    with guide.changes(i=1):
        guide.field("channel", "input").fill("4")
        page.keyboard.press("Enter")
    guide.status("Answered")
    guide.shot("guidance")
    with guide.changes():
        guide.choose("picture", "photograph")
    guide.choose("guidance", "true labels")
    guide.status("nobody knows the true labels")
    guide.choose("guidance", "as SEM saw it")
    with guide.changes():
        guide.press("rain, mm/h", n=2)


def test_attribution_asked_shown_and_cancelled(page):
    ask = Panel(page, "Attribution")
    ask.status("Ready")
    frame = ask.seen(".sg-frame").first
    where = frame.bounding_box()
    page.mouse.move(
        where["x"] + 0.6 * where["width"], where["y"] + 0.45 * where["height"]
    )
    page.mouse.down()
    page.mouse.move(
        where["x"] + 0.8 * where["width"], where["y"] + 0.7 * where["height"], steps=3
    )
    page.mouse.up()
    ask.press("steps", "Home")  # the fewest
    ask.choose("method B", "Layer Grad-CAM")
    ask.choose("level", "sim.decoder.3")
    ask.seen("button:has-text('Explain')").click()
    ask.seen("td").first.wait_for(timeout=LONG)  # the shares come last
    ask.status("Answered")
    assert (
        ask.seen(".sg-right").count() == 3
        and "convergence error" in page.locator("body").inner_text()
    )
    with ask.changes(i=1):
        ask.choose("show the map of", "rain")
    with ask.changes(i=1):
        ask.press("opacity of maps", "ArrowLeft", 4)
    ask.shot("attribution")
    ask.choose("method B", "Occlusion")
    ask.press("square, px", "Home")
    ask.seen("button:has-text('Explain')").click()
    ask.seen("button:has-text('Cancel'):not([disabled])").click(timeout=LONG)
    ask.status("Stopped")
    ask.choose("explain", "SEM's score of a class")
    ask.choose("class", "train")
    ask.seen("button:has-text('Explain')").click()
    ask.status("SEM sees no train")


def test_training_followed(page, tmp_path):
    run = tmp_path / "run"
    (run / "panels").mkdir(parents=True)
    history = run / "history.csv"
    history.write_text("epoch,train_loss,psnr\n0,3.0,21.0\n1,2.5,22.0\n")
    sample_photo().save(run / "panels" / "epoch_1.png")
    watch = Panel(page, "Training")
    watch.field("run folder", "input").fill(str(run))
    page.keyboard.press("Enter")
    watch.status("2 epochs")
    watch.seen("text=follow").first.click()
    with watch.changes(".sg-curves"), open(history, "a") as f:
        f.write("2,2.1,23.0\n")
    watch.status("3 epochs")
    watch.shot("training")
    watch.seen("text=follow").first.click()


def test_in_jupyterlab(browser, tmp_path):
    kernel = {
        "kernelspec": {
            "display_name": "python3",
            "language": "python",
            "name": "python3",
        }
    }  # or JupyterLab would ask for one
    notebook = nbformat.v4.new_notebook(
        metadata=kernel,
        cells=[
            nbformat.v4.new_code_cell(
                "from sginet.interpret.explorers import GuidanceExplorer\nlook = GuidanceExplorer()\nlook.weather.width = 256\nlook"
            )
        ],
    )
    nbformat.write(notebook, tmp_path / "look.ipynb")
    with serving(
        [
            "jupyterlab",
            "--allow-root",
            "--no-browser",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={tmp_path}",
        ],
        tmp_path / "log",
        JUPYTER_CONFIG_DIR=str(tmp_path / "config"),
    ) as address:
        page = browser.new_page(viewport={"width": 1600, "height": 1100})
        page.goto(
            f"{address}/lab/workspaces/auto-t/tree/look.ipynb?reset", timeout=LONG
        )
        page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(
            timeout=LONG
        )  # before that a run is dropped silently
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()
        guide = Panel(page)
        guide.status("Answered")
        with guide.changes():
            guide.choose("right", "difference by other guidance")
        with guide.changes():
            guide.choose("guidance", "names shuffled")
        guide.shot("jupyterlab")
        page.close()
