"""The site: links lead somewhere, figures have words, nothing is fetched, search works."""

import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Links, names and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.names, self.pictures = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"):
            self.names.add(a["id"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "img":
            self.pictures.append(a)
        if tag in ("img", "script") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "icon"):
            self.loads.append(a["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/docs.py", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {
        p: Page(p.read_text(encoding="utf-8"))
        for p in site.rglob("*.html")
        if p.name != "404.html"
    }


def test_every_link_leads_somewhere(site, pages):
    lost = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if (
                not target.is_file()
                or parts.fragment
                and target in pages
                and parts.fragment not in pages[target].names | {"__skip"}
            ):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost, lost[:20]


def test_nothing_is_fetched_from_elsewhere(pages):
    assert not [
        (p.name, link)
        for p, page in pages.items()
        for link in page.loads
        if urlsplit(link).netloc
    ]


def test_every_notebook_lesson_and_module_has_its_page(site):
    for notebook in (ROOT / "nbs").rglob("*.ipynb"):
        if not re.search(r"/[._]", str(notebook.relative_to(ROOT))):
            assert (
                site / notebook.relative_to(ROOT / "nbs").with_suffix(".html")
            ).exists(), notebook
    for module in (ROOT / "sginet").rglob("[a-z]*.py"):
        name = ".".join(module.relative_to(ROOT / "sginet").with_suffix("").parts)
        assert (site / "api" / f"{name}.html").exists(), module


def test_every_figure_has_words(pages):
    bare = [
        (p.name, a)
        for p, page in pages.items()
        for a in page.pictures
        if len(a.get("alt", "")) < 12
    ]
    assert not bare, bare[:10]
    assert sum(len(page.pictures) for page in pages.values()) > 50


def test_no_formula_is_left_as_text(site, pages):
    for p in pages:
        assert 'class="arithmatex"' not in p.read_text(encoding="utf-8"), p
    assert "<math" in (site / "lessons/4_contrast.html").read_text(encoding="utf-8")


def test_solutions_are_folded_up_and_docstrings_are_there(site):
    assert (site / "lessons/1_rain.html").read_text(encoding="utf-8").count(
        "<details"
    ) == 4
    text = (site / "api/data.rain.html").read_text(encoding="utf-8")
    assert "mm/h, 0 or more: one, or one for each picture" in re.sub(
        r"<[^>]+>", "", text
    )  # a comment on a parameter
    where = next(
        p
        for p in (site / "api").glob("models.*.html")
        if 'id="sginetderain"' in p.read_text(encoding="utf-8")
    )
    assert "SGINet.derain" in where.read_text(encoding="utf-8")


def test_it_can_be_searched(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {
        d["location"].split("#")[0]
        for d in index["docs"]
        if "contrastive" in (d["title"] + d["text"]).lower()
    }
    assert {"losses/01_csd.html", "lessons/4_contrast.html"} <= found


# ---- sliders, in a real browser


@pytest.fixture(scope="module")
def address(site):
    """The site, served from this machine."""
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def page(address):
    """The notebook of the sliders, on a phone's screen."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.faults = []
        page.on("pageerror", lambda fault: page.faults.append(str(fault)))
        page.goto(f"{address}interpret/05a_sliders.html")
        yield page
        assert page.faults == []
        browser.close()


def drag(page, inside, start, end):
    """Press at a place of an element, in shares of its size, and let go at another."""
    # in the middle, where no bar of the page covers it
    inside.evaluate(
        "element => element.scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    box = inside.bounding_box()
    (x0, y0), (x1, y1) = (
        (box["x"] + x * box["width"], box["y"] + y * box["height"])
        for x, y in (start, end)
    )
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=4)
    page.mouse.up()


def test_the_line_between_two_pictures_is_dragged(page):
    figure = page.locator(".sginet-slider[data-kind=compare]").first
    drag(page, figure.locator(".stage"), (0.5, 0.5), (0.2, 0.5))
    line, stage = (figure.locator(part).bounding_box() for part in (".line", ".stage"))
    assert abs((line["x"] - stage["x"]) / stage["width"] - 0.2) < 0.05
    assert stage["width"] > 250 and stage["x"] + stage["width"] <= 390


def test_a_series_is_moved_by_keyboard(page):
    figure = page.locator(".sginet-slider[data-kind=steps]").first
    figure.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert figure.locator("output").text_content() == "200 mm/h"
    assert figure.locator("input").get_attribute("aria-valuetext") == "200 mm/h"
    shown = [img.is_visible() for img in figure.locator("img").all()]
    assert shown == [False] * 4 + [True]


def test_a_point_is_dragged_over_its_plane(page):
    figure = page.locator(".sginet-slider[data-kind=plane]").first
    drag(page, figure.locator(".plane"), (0.1, 0.1), (0.5, 0.5))
    middle = figure.locator("output").text_content()
    drag(page, figure.locator(".plane"), (0.5, 0.5), (0.98, 0.02))
    corner = figure.locator("output").text_content()
    assert middle == "height 0.00" and corner == "height 1.00"
    figure.locator("input").first.focus()
    page.keyboard.press("ArrowLeft")
    assert figure.locator("output").text_content() not in (corner, middle)


def test_the_lessons_have_sliders(site):
    found = {
        lesson.stem: lesson.read_text(encoding="utf-8").count('class="sginet-slider"')
        for lesson in (site / "lessons").glob("[1-9]_*.html")
    }
    assert sum(n > 0 for n in found.values()) >= 7, found
