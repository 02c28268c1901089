"""The explorers in a real browser: the page of `make app` and a JupyterLab notebook.

Screenshots are left in out/screenshots.
"""

import io
import os
import re
import shutil
import signal
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
from PIL import Image

from sginet.images import sample_photo

pytestmark = pytest.mark.slow

PLACES = "chromium", "chromium-browser", "google-chrome"
SHOTS = ROOT / "out" / "screenshots"
LONG = 300_000  # ms; a busy machine may need some for a picture
# a hash of a picture's bytes, or null while it is being replaced or still the old one
HASH = """async ([img, old]) => {
  try {
    const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer());
    let h = 5381;
    for (const b of bytes) h = (h * 33 ^ b) >>> 0;
    return bytes.length > 0 && h !== old ? h : null;
  } catch (e) { return null; }
}"""
PUT_FILE = """([selector, base64, name, event]) => {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: 'image/png'}));
  const target = document.querySelector(selector);
  const options = {bubbles: true, cancelable: true};
  target.dispatchEvent(event === 'paste'
    ? new ClipboardEvent('paste', {...options, clipboardData: data})
    : new DragEvent('drop', {...options, dataTransfer: data}));
}"""


@pytest.fixture(scope="module")
def browser():
    """Chromium; without it the tests are skipped, but fail in continuous integration."""
    found = next((path for name in PLACES if (path := shutil.which(name))), None)
    if not found:
        in_ci = os.environ.get("CI") or os.environ.get("SGINET_CI")
        refuse = pytest.fail if in_ci else pytest.skip
        refuse(f"no browser: none of {', '.join(PLACES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        args = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chromium = p.chromium.launch(executable_path=found, headless=True, args=args)
        yield chromium
        chromium.close()


@contextmanager
def serving(args, log, **env):
    """A server on a free port of this machine; gives its address once it answers."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(log, "w", encoding="utf-8") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *args, f"--port={port}"],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **env},
        )
        try:
            wait_until(lambda: answers(port, server, log))
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def answers(port, server, log):
    """Whether the server answers anything at all."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        assert server.poll() is None, log.read_text()
        return False
    return True


def wait_until(true, seconds=LONG / 1000):
    """Look every quarter of a second until something is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.25)
    return found


def kernels(parent):
    """The processes of the kernels below a server, by their ids."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return {
        int(pid)
        for pid, ppid, args in rows
        if int(ppid) == parent and "ipykernel" in args
    }


class Panel:
    """What is visible of an explorer, by the labels that a person reads."""

    def __init__(self, page, tab=None):
        self.page = page
        if tab:
            page.get_by_role("tab", name=re.compile(f"^{tab}")).click()

    def seen(self, selector):
        return self.page.locator(selector).locator("visible=true")

    def field(self, label, kind):
        row = "xpath=//div[contains(@class, 'widget-inline-hbox')]"
        return self.seen(f"{row}[label[normalize-space()='{label}']]//{kind}").first

    def hash(self, selector, i=0, old=None):
        """A hash of a picture's bytes, once it has another one than `old`."""
        img = self.seen(selector).nth(i)
        img.wait_for(timeout=LONG)
        for _ in range(LONG // 50):
            found = self.page.evaluate(HASH, [img.element_handle(), old])
            if found is not None:
                return found
            self.page.wait_for_timeout(50)
        pytest.fail(f"picture {i} of {selector} did not change")

    @contextmanager
    def changes(self, selector=".sg-right", i=0):
        """The picture must be another one after the block."""
        self.settled()
        before = self.hash(selector, i)
        yield
        self.hash(selector, i, before)
        self.settled()

    def settled(self):
        """Wait until no explorer computes."""
        self.page.wait_for_timeout(100)
        self.seen(".sg-working").first.wait_for(state="hidden", timeout=LONG)

    def status(self, words):
        self.seen(f"[role=status]:has-text('{words}')").first.wait_for(timeout=LONG)

    def choose(self, label, value):
        self.field(label, "select").select_option(value)

    def press(self, label, key="ArrowRight", n=1):
        self.field(label, "*[contains(@class, 'noUi-handle')]").focus()
        for _ in range(n):
            self.page.keyboard.press(key)

    def frame(self, i=0):
        return self.seen(".sg-frame").nth(i)

    def drag(self, start, end, i=0, target=None):
        """Drag on a picture, from and to shares of its width and height."""
        box = (target or self.frame(i)).bounding_box()
        (x0, y0), (x1, y1) = (
            (box["x"] + u * box["width"], box["y"] + v * box["height"])
            for u, v in (start, end)
        )
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=4)
        self.page.mouse.up()

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


VOILA = ["voila", "nbs/app.ipynb", "--Voila.config_file_paths=nbs/voila"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of `make app`, with its first picture already computed."""
    log = tmp_path_factory.mktemp("voila") / "log"
    with serving(VOILA, log) as address:
        wait_until(lambda: b"is filled with" in log.read_bytes())
        yield address


def opened(browser, address, **options):
    """A page with its first picture, and the requests that left this machine."""
    options = {"viewport": {"width": 1400, "height": 1000}, **options}
    page = browser.new_page(**options)
    page.foreign = []
    local = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    page.on(
        "request",
        lambda r: None if r.url.startswith(local) else page.foreign.append(r.url),
    )
    page.goto(address, timeout=LONG)
    page.locator(".sg-right[src]").first.wait_for(timeout=LONG)
    return page


@pytest.fixture(scope="module")
def page(browser, address):
    page = opened(browser, address)
    yield page
    page.close()


def test_first_screen_is_a_result(page):
    derain = Panel(page, "Derain")
    derain.status("SGINet changed the picture by")
    assert derain.seen(".sg-name").all_inner_texts() == ["rain", "refined"]
    assert derain.seen(".sg-choices button").count() == 5
    # the stages in the order in which they are made; no control that does not apply
    assert derain.seen("tbody th").all_inner_texts() == ["rain", "coarse", "refined"]
    assert derain.seen("text=my picture is rainy already").count() == 0
    assert page.title().startswith("SGINet")
    assert page.locator("link[rel=icon][href^='data:image/svg']").count() == 1
    assert page.foreign == []
    derain.shot("derain")


def test_divider_dragged_and_by_keys(page):
    derain = Panel(page, "Derain")
    line = derain.seen(".sg-line").first
    derain.drag((0.5, 0.5), (0.25, 0.5))
    assert abs(int(line.get_attribute("aria-valuenow")) - 25) <= 1
    clip = derain.seen(".sg-left").first.evaluate("e => e.style.clipPath")
    line.focus()
    page.keyboard.press("ArrowRight")
    assert abs(int(line.get_attribute("aria-valuenow")) - 27) <= 1
    assert derain.seen(".sg-left").first.evaluate("e => e.style.clipPath") != clip
    page.keyboard.press("End")
    assert line.get_attribute("aria-valuetext") == "100 % from the left"
    derain.drag((0.98, 0.5), (0.5, 0.5))


def test_zoom_pan_and_readout(page):
    derain = Panel(page, "Derain")
    box = derain.frame().bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    readout = derain.seen(".sg-readout").first.inner_text()
    words = r"x 38\d, y 6\d · [a-z ]+ · rain: RGB \d+ \d+ \d+ · refined: RGB"
    assert re.match(words, readout)  # pixel, class and values
    transform = "e => e.style.transform"
    zoomed = derain.seen(".sg-zoomed").first
    before = zoomed.evaluate(transform)
    page.mouse.wheel(0, -600)
    wait_until(lambda: zoomed.evaluate(transform) != before)
    # the pixel under the pointer stays under it
    page.mouse.move(box["x"] + 0.75 * box["width"] + 1, box["y"] + 0.25 * box["height"])
    assert re.match(r"x 38\d, y 6\d", derain.seen(".sg-readout").first.inner_text())
    derain.shot("derain-zoomed")
    before = zoomed.evaluate(transform)
    derain.drag((0.9, 0.9), (0.7, 0.7))  # zoomed: it pans
    assert zoomed.evaluate(transform) != before
    rain = Panel(page, "Rain")  # the same zoom in the other tabs
    rain.status("Answered")
    assert "scale(1)" not in rain.seen(".sg-zoomed").first.evaluate(transform)
    rain.seen(".sg-fit").first.click()
    assert rain.seen(".sg-zoomed").first.evaluate(transform).endswith("scale(1)")
    Panel(page, "Derain").settled()


def test_download_is_the_result(page):
    derain = Panel(page, "Derain")
    derain.settled()
    with page.expect_download() as waiting:
        derain.seen(".sg-save").first.click()
    download = waiting.value
    assert download.suggested_filename == "refined.png"
    assert Image.open(download.path()).size == (512, 256)


def test_upload_chosen_dropped_pasted_bad_and_large(page, tmp_path):
    derain = Panel(page, "Derain")
    sample_photo().save(tmp_path / "china.jpg")
    noise = Image.effect_noise((4000, 3000), 90).convert("RGB")
    noise.save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 10e6
    (tmp_path / "notes.png").write_text("no picture at all")
    (tmp_path / "zeros.png").write_bytes(bytes(12_000_000))
    chooser = derain.seen(".sg-upload input").first
    with derain.changes():
        chooser.set_input_files(tmp_path / "china.jpg")
    assert derain.seen(".sg-choices [aria-checked=true]").inner_text() == "my own"
    assert derain.seen("text=my picture is rainy already").count() == 1
    kept = derain.hash(".sg-right")
    for name, words in (
        ("notes.png", "notes.png: not a picture"),
        ("zeros.png", "zeros.png: not a picture that can be read, and too large"),
    ):
        chooser.set_input_files(tmp_path / name)
        derain.status(words)
        assert derain.hash(".sg-right") == kept
    derain.shot("derain-upload-refused")
    with derain.changes():
        chooser.set_input_files(tmp_path / "large.png")  # shrunk in the browser
    import base64

    for event, colour in (("drop", "red"), ("paste", "green")):
        out = io.BytesIO()
        size = (300, 200) if event == "drop" else (200, 300)
        Image.new("RGB", size, colour).save(out, "PNG")
        data = base64.b64encode(out.getvalue()).decode()
        with derain.changes(".sg-left"):
            target = ".sg-upload" if event == "drop" else "body"
            page.evaluate(PUT_FILE, [target, data, f"{colour}.png", event])
    box = derain.frame().bounding_box()  # a portrait fits into the window as well
    assert box["height"] > box["width"] and box["height"] <= 0.77 * 1000
    with derain.changes():
        derain.seen(".sg-choices button:has-text('drawn street 1')").first.click()
    derain.status("Answered")


def test_rain_by_every_control(page):
    rain = Panel(page, "Rain")
    rain.settled()
    with rain.changes():
        rain.choose("work at, px wide", "256")
    for label in "rain, mm/h", "wind, m/s", "nearest drop, m", "which drops":
        with rain.changes():
            rain.press(label, n=3)
    for layer in (
        "distance",
        "light of the streaks",
        "share covered by drops",
        "light let through",
        "behind the streaks",
    ):
        with rain.changes():
            rain.choose("show", layer)
    rain.choose("show", "distance")
    bar = rain.seen(".sg-bar").first
    bar.wait_for(timeout=LONG)
    assert re.search(r"0 m\s+\d+(\.\d+)? m", bar.inner_text())
    rain.shot("rain")
    rain.choose("show", "light let through")
    rain.seen(".sg-bar:has-text('100%')").wait_for(timeout=LONG)
    with rain.changes():
        rain.choose("show", "the rainy picture")
    rain.press("rain, mm/h", "Home")
    rain.seen("td:has-text('no rain')").first.wait_for(timeout=LONG)
    rain.press("rain, mm/h", "ArrowRight", 10)
    rain.settled()
    # sliders have a name and a value for a screen reader
    handle = rain.field("rain, mm/h", "*[contains(@class, 'noUi-handle')]")
    assert handle.get_attribute("aria-label") == "rain, mm/h"
    assert handle.get_attribute("aria-valuetext")
    assert rain.seen("[role=status][aria-live=polite]").count() == 1


def test_state_in_the_address(page):
    rain = Panel(page, "Rain")
    rain.status("Answered")
    rain.choose("work at, px wide", "256")
    rain.press("rain, mm/h", "Home")
    rain.press("rain, mm/h", "ArrowRight", 3)
    rain.choose("show", "light let through")
    rain.settled()
    wait_until(lambda: "rain.layer=light" in page.url and "rate=30" in page.url)
    assert "tab=rain" in page.url and "width=256" in page.url
    shown = rain.hash(".sg-right")
    page.reload(timeout=LONG)
    again = Panel(page)
    again.seen(".sg-right[src]").first.wait_for(timeout=LONG)
    wait_until(
        lambda: again.seen(".sg-right").count() and again.hash(".sg-right") == shown
    )
    assert again.field("show", "select").input_value() == "light let through"
    assert "rate=30" in page.url


def test_guidance(page):
    guide = Panel(page, "Guidance")
    guide.status("Other names move the picture by")
    guide.settled()
    names = guide.seen(".sg-name").all_inner_texts()
    assert names[:2] == ["refined", "difference, amplified"]
    assert guide.seen(".sg-choices").first.locator("button").count() == 25
    assert re.search(
        r"-[\d.]+%\s+0\s+[\d.]+%", guide.seen(".sg-bar").first.inner_text()
    )
    guide.shot("guidance")
    for kind in "one class everywhere", "true labels", "from another street":
        with guide.changes():
            guide.choose("guidance", kind)
    with guide.changes(".sg-left"):
        guide.choose("left", "classes given to SIM")
    legend = guide.seen(".sg-legend").first.inner_text()
    assert "road" in legend and "%" in legend
    box = guide.frame().bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.95 * box["height"])
    assert "classes given to SIM: road" in guide.seen(".sg-readout").first.inner_text()


def test_guidance_painted(page):
    guide = Panel(page, "Guidance")
    with guide.changes(".sg-left"):
        guide.choose("guidance", "painted box")
    with guide.changes(".sg-left"):
        guide.drag((0.1, 0.6), (0.5, 0.9))
    with guide.changes(".sg-left"):
        page.keyboard.press("ArrowRight")  # the picture has the focus now
    with guide.changes(".sg-left"):
        page.keyboard.press("Shift+ArrowUp")
    with guide.changes(".sg-left"):
        guide.choose("class", "car")
    with guide.changes(".sg-left"):
        guide.choose("guidance", "painted by brush")
    with guide.changes(".sg-left"):
        guide.drag((0.2, 0.8), (0.7, 0.7))
    guide.status("The painted car moves the picture")
    guide.shot("guidance-painted")
    with guide.changes(".sg-left"):
        guide.seen("button:has-text('clear the brush')").click()


def test_layers_and_channels(page):
    guide = Panel(page, "Guidance")
    guide.settled()
    layers, channels = (guide.seen(".sg-choices").nth(i) for i in (0, 1))
    with guide.changes(i=1):
        layers.locator("button", has_text="FRM, input, second block").click()
    with guide.changes(i=1):
        channels.locator("button").nth(1).click()
    assert "channel" in guide.seen(".sg-name").last.inner_text()
    with guide.changes(i=1):
        page.keyboard.press("ArrowRight")


def shown_error(page):
    """By how many percent of the total an attribution misses its sum."""
    text = page.locator("body").inner_text()
    return float(re.search(r"an error of ([\d.]+)% of the total", text)[1])


def test_attribution_asked_shown_and_cancelled(page):
    ask = Panel(page, "Attribution")
    ask.status("Ready. Press")
    empty = ask.frame(1).evaluate("e => e.dataset.empty")
    assert empty == "Press 'Explain'"
    code = ask.seen(".sg-code").first.locator("pre").text_content()
    assert "explain(session, scene" in code
    ask.choose("work at, px wide", "128")
    ask.settled()
    ask.drag((0.6, 0.45), (0.8, 0.7))
    ask.settled()
    ask.press("steps", "Home")
    ask.choose("method B", "Layer Grad-CAM")
    assert "An answer takes about" in page.locator("body").inner_text()
    ask.seen("button:has-text('Explain')").click()
    ask.status("Both methods have answered")
    assert ask.seen("td").count() >= 3  # the shares
    marked = page.locator(".sg-badge:has-text('not converged')").first.is_visible()
    assert marked == (shown_error(page) > 10)
    with ask.changes(i=1):
        ask.choose("show the map of", "coarse")
    with ask.changes(i=1):
        ask.press("opacity of maps", "ArrowLeft", 4)
    assert ask.seen(".sg-bar").count() >= 2
    ask.shot("attribution")
    # another question dims the maps
    ask.choose("explain", "brightness of the refined picture")
    ask.seen(".sg-stale").first.wait_for(timeout=LONG)
    # the mean is about as bright as the whole picture: what is left to explain is next
    # to nothing, and four steps miss it by far more than 10 %
    ask.choose("picture", "drawn street 4")
    ask.settled()
    ask.drag((0.02, 0.02), (0.98, 0.98))
    ask.choose("baseline", "mean")
    ask.status("Ready")
    ask.seen("button:has-text('Explain')").click()
    ask.status("Both methods have answered")
    assert shown_error(page) > 10
    ask.seen(".sg-badge:has-text('not converged')").first.wait_for(timeout=LONG)
    ask.seen("button:has-text('twice as many steps')").wait_for(timeout=LONG)
    ask.settled()
    ask.shot("attribution-not-converged")
    ask.choose("method B", "Occlusion")
    ask.press("square, px", "Home")
    ask.seen("button:has-text('Explain')").click()
    ask.seen("button:has-text('Cancel'):not([disabled])").click(timeout=LONG)
    ask.status("Stopped")
    ask.seen("button:has-text('Explain'):not([disabled])").wait_for(timeout=LONG)


def test_training_recorded_and_followed(page, tmp_path):
    watch = Panel(page, "Training")
    watch.status("The recorded training of a small model")
    charts = watch.seen(".sg-charts svg")
    names = [chart.get_attribute("aria-label") for chart in charts.all()]
    assert names[0].startswith("psnr") and "l_csd over the epochs" in names
    watch.shot("training")
    watch.field("run folder", "input").fill(str(tmp_path / "none"))
    page.keyboard.press("Enter")
    watch.status("Nothing to show")
    assert watch.seen(".sg-fault").count() == 0
    run = tmp_path / "run"
    (run / "panels").mkdir(parents=True)
    history = run / "history.csv"
    history.write_text("epoch,train_loss,psnr\n0,3.0,21.0\n1,2.5,22.0\n")
    sample_photo().save(run / "panels" / "epoch_1.png")
    watch.field("run folder", "input").fill(str(run))
    page.keyboard.press("Enter")
    watch.status("2 epochs")
    watch.seen("text=follow: read again").first.click()
    before = watch.seen(".sg-charts").inner_html()
    with open(history, "a", encoding="utf-8") as f:
        f.write("2,2.1,23.0\n")
    watch.status("3 epochs")
    wait_until(lambda: watch.seen(".sg-charts").inner_html() != before)
    watch.seen("text=follow: read again").first.click()


def test_python_is_copied(page):
    rain = Panel(page, "Rain")
    rain.settled()
    button = rain.seen(".sg-code button").first
    button.click()  # copied at once
    wait_until(lambda: button.inner_text() == "copied")
    page.evaluate(
        """() => {
          const field = document.createElement("textarea");
          document.body.append(field);
          field.id = "pasted";
          field.focus();
        }"""
    )
    page.keyboard.press("Control+V")
    code = page.locator("#pasted").input_value()
    page.locator("#pasted").evaluate("e => e.remove()")
    assert "show_rain(session, scene, settings).figure()" in code
    compile(code, "cell", "exec")


def test_phone_and_dark(browser, address):
    page = opened(
        browser,
        address,
        viewport={"width": 390, "height": 800},
        color_scheme="dark",
        has_touch=True,
    )
    derain = Panel(page)
    derain.settled()
    frame = derain.frame().bounding_box()
    controls = derain.seen(".sg-controls").first.bounding_box()
    assert frame["y"] < controls["y"]  # the picture comes first
    assert frame["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert derain.frame().evaluate("e => getComputedStyle(e).touchAction") == "pan-y"
    for label in page.locator(".lm-TabBar-tabLabel").all():  # no tab is cut off
        assert label.evaluate("e => e.scrollWidth <= e.clientWidth")
        box = label.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    handle = derain.seen(".noUi-handle").first.bounding_box()
    assert handle["width"] >= 24 and handle["height"] >= 24
    ground, text = (
        page.locator("body").evaluate(f"e => getComputedStyle(e).{name}")
        for name in ("backgroundColor", "color")
    )
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 150
    assert sum(map(int, re.findall(r"\d+", text)[:3])) > 500
    derain.shot("phone-dark")
    # two fingers that part enlarge the picture
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    fingers = page.context.new_cdp_session(page)
    for kind, apart in ("touchStart", 30), ("touchMove", 60), ("touchMove", 90):
        points = [{"x": x + s * apart, "y": y, "id": i} for i, s in enumerate((-1, 1))]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    zoomed = derain.seen(".sg-zoomed").first.evaluate("e => e.style.transform")
    assert float(re.search(r"scale\(([\d.]+)\)", zoomed)[1]) > 1.5
    guide = Panel(page, "Guidance")  # a wide table scrolls in its own frame
    guide.status("Other names move the picture by")
    table = guide.seen(".sg-table").first
    assert table.evaluate("e => e.scrollWidth > e.clientWidth")
    assert table.evaluate("e => getComputedStyle(e).overflowX") == "auto"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    guide.settled()
    guide.shot("phone-dark-guidance")
    watch = Panel(page, "Training")  # its charts follow the theme
    watch.status("The recorded training")
    words = watch.seen(".sg-charts svg text").first
    ink = words.evaluate("e => getComputedStyle(e).fill")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) > 500
    watch.shot("phone-dark-training")
    page.close()


def server_at(address):
    """The process id of the server at an address."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid,args"], capture_output=True, text=True
    ).stdout
    port = address.rsplit(":")[-1]
    return next(int(x.split()[0]) for x in listed.splitlines() if f"port={port}" in x)


def test_a_kernel_whose_page_vanished_is_ended(browser, tmp_path):
    """Where a page ends without its last request, its idle kernel ends after a while."""
    log = tmp_path / "log"
    manager = "--PageKernelManager"
    soon = [f"{manager}.cull_idle_timeout=3", f"{manager}.cull_interval=1"]
    with serving([*VOILA, *soon], log) as address:
        wait_until(lambda: b"is filled with" in log.read_bytes())
        server = server_at(address)
        (shown,) = kernels(server)
        page = browser.new_page()
        page.add_init_script("navigator.sendBeacon = () => true")  # says nothing
        page.goto(address, timeout=LONG)
        page.locator(".sg-right[src]").first.wait_for(timeout=LONG)
        wait_until(lambda: len(kernels(server)) == 2)
        page.wait_for_timeout(6_000)
        assert shown in kernels(server)  # it has a page, and the other waits for one
        assert len(kernels(server)) == 2
        page.close()
        wait_until(lambda: shown not in kernels(server))
        assert len(kernels(server)) == 1


def test_two_tabs_at_once_and_a_killed_kernel(browser, tmp_path):
    """Two pages have a kernel each; one whose kernel dies says so; left kernels end."""
    log = tmp_path / "log"
    with serving(VOILA, log) as address:
        wait_until(lambda: b"is filled with" in log.read_bytes())
        server = server_at(address)
        waiting = kernels(server)
        first = opened(browser, address)
        wait_until(lambda: len(kernels(server)) == 2)
        (mine,) = waiting
        second = opened(browser, address)
        two = [Panel(first), Panel(second)]
        for panel, sample in zip(two, ("drawn street 2", "photograph")):
            panel.settled()
            panel.seen(f".sg-choices button:has-text('{sample}')").click()
        for panel in two:
            panel.settled()
            panel.status("SGINet changed the picture by")
        assert two[0].hash(".sg-right") != two[1].hash(".sg-right")
        os.kill(mine, signal.SIGKILL)
        first.locator(".sg-lost:not([hidden])").first.wait_for(timeout=LONG)
        assert "Connection lost" in first.locator(".sg-lost").first.inner_text()
        two[0].shot("connection-lost")
        assert second.locator(".sg-lost:not([hidden])").count() == 0
        # a page that is closed ends its kernel at once
        before = kernels(server)
        second.goto("about:blank")
        wait_until(lambda: len(kernels(server)) < len(before), 60)
        assert " 403 " not in log.read_text(errors="replace")
        first.close()
        second.close()


def test_in_jupyterlab(browser, tmp_path):
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    source = (
        "from sginet.interpret.guidance_explorer import GuidanceExplorer\n"
        "look = GuidanceExplorer()\n"
        "look.scene.width = 256\n"
        "look"
    )
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": kernel},  # or JupyterLab would ask for one
        cells=[nbformat.v4.new_code_cell(source)],
    )
    nbformat.write(notebook, tmp_path / "look.ipynb")
    lab = [
        "jupyterlab",
        "--allow-root",
        "--no-browser",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    config = str(tmp_path / "config")
    with serving(lab, tmp_path / "log", JUPYTER_CONFIG_DIR=config) as address:
        page = browser.new_page(viewport={"width": 1600, "height": 1100})
        page.goto(
            f"{address}/lab/workspaces/auto-t/tree/look.ipynb?reset", timeout=LONG
        )
        # before that a run is dropped silently
        page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=LONG)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()
        guide = Panel(page)
        guide.status("Answered")
        with guide.changes():
            guide.choose("guidance", "true labels")
        guide.shot("jupyterlab")
        page.close()
