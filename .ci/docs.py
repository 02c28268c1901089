"""Build the site: notebooks with their committed outputs, a page for each module, the page to try.

python .ci/docs.py [FOLDER]                    # default: _docs
python -m http.server --directory _docs        # to read and to search it

No notebook is run, and the pages fetch nothing; only the page to try needs npm once.
"""

import ast
import base64
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from latex2mathml.converter import convert as mathml

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "_proc"
TEXTS = {
    "weights/README.md": "weights.md",
    "data/README.md": "data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}  # other pages
BAR = '<mo accent="true">&#x02015;</mo></mover>'  # see docs.css
COMMON = {
    "check",
    "plain",
    "project",
    "table",
    "layout",
    "shown",
    "total",
}  # names that prose uses as words


# ---- modules
def modules():
    """Each module's name and the tree of its source, in the order of the notebooks."""
    found = []
    for path in sorted((ROOT / "sginet").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if notebook := re.search(r"File to edit: \S*?nbs/(\S+?\.ipynb)", source):
            name = ".".join(
                path.relative_to(ROOT / "sginet").with_suffix("").parts
            ).removesuffix(".__init__")
            found.append((notebook[1], name, source, ast.parse(source)))
    return [m[1:] for m in sorted(found, key=lambda m: m[0])], {
        name: notebook for notebook, name, *_ in found
    }


def exported(tree):
    """The names in a module's `__all__`."""
    return (
        next(
            (
                ast.literal_eval(n.value)
                for n in tree.body
                if isinstance(n, ast.Assign)
                and n.targets[0].id == "__all__"
                and isinstance(n.value, ast.List)
            ),
            [],
        )
        if tree.body
        else []
    )


def defined(tree):
    """The functions and classes of a module; each has a heading on its page."""
    return {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def owner(function):
    """The class that a function decorated with `patch` belongs to, or None."""
    first = function.args.args[0].annotation if function.args.args else None
    return (
        first.id
        if isinstance(first, ast.Name)
        and any("patch" in ast.unparse(d) for d in function.decorator_list)
        else None
    )


def head(node, lines):
    """A definition as it is written, comments on the parameters included, without what it does."""
    body = node.body[0]
    own = lines[node.lineno - 1 : body.lineno - 1] or [
        lines[node.lineno - 1][: body.col_offset]
    ]
    return re.sub(r"\n\s*\n", "\n", "\n".join(own)).rstrip()


def entry(node, lines, title, level=2):
    """Title, signature and docstring of a function or a class, and its public methods."""
    own = head(node, lines)
    if isinstance(node, ast.ClassDef):
        init = next(
            (
                n
                for n in node.body
                if isinstance(n, ast.FunctionDef) and n.name == "__init__"
            ),
            None,
        )
        fields = [
            lines[i]
            for n in node.body
            if isinstance(n, ast.AnnAssign)
            for i in range(n.lineno - 1, n.end_lineno)
        ]
        own = "\n".join([own, *fields, *([head(init, lines)] if init else [])])
    own = "\n".join(line[node.col_offset :] for line in own.split("\n"))
    yield f"{'#' * level} {title}\n\n```python\n{own}\n```\n\n{ast.get_docstring(node) or ''}\n"
    for n in node.body if isinstance(node, ast.ClassDef) else ():
        if (
            isinstance(n, ast.FunctionDef)
            and not n.name.startswith("_")
            and ast.get_docstring(n)
        ):
            yield from entry(n, lines, f"{title}.{n.name}", level + 1)


def api_page(name, source, tree, notebook):
    """A module's page."""
    lines, names = source.split("\n"), exported(tree)
    stem = Path(notebook).stem
    page_of = Path(notebook).with_suffix(".md")
    parts = [
        f"# sginet.{name}\n\n> {ast.get_docstring(tree) or ''}\n\n"
        f"Written and explained in [{stem}](../{page_of}).\n"
    ]
    constants = {
        t.id: n
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            parts += entry(node, lines, node.name)
        elif isinstance(node, ast.FunctionDef) and owner(node):
            parts += entry(node, lines, f"{owner(node)}.{node.name}", 3)
    if values := [n for n in names if n in constants]:
        parts.append(
            "## Constants\n\n```python\n"
            + "\n".join(
                "\n".join(lines[constants[n].lineno - 1 : constants[n].end_lineno])
                for n in values
            )
            + "\n```\n"
        )
    return "\n".join(parts)


# ---- notebooks
def words(node):
    """The constant text of a string expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return (
        "".join(words(v) for v in node.values)
        if isinstance(node, ast.JoinedStr)
        else ""
    )


def alt(source, before):
    """What a figure shows, in words: `#| fig-alt:`, or the sentence before it and its labels."""
    if said := re.search(r"^#\| *fig-alt: *(.+)$", source, re.M):
        return said[1]
    try:
        calls = [
            n
            for n in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)))
            if isinstance(n, ast.Call)
        ]
    except SyntaxError:
        calls = []
    named = [
        words(k.value)
        for c in calls
        for k in c.keywords
        if k.arg in ("xlabel", "ylabel", "label", "title")
    ]
    for c in calls:
        if getattr(c.func, "id", getattr(c.func, "attr", "")) in (
            "show_images",
            "set_title",
            "set_xlabel",
            "set_ylabel",
        ):
            named += [
                words(n)
                for arg in c.args
                for n in ast.walk(arg)
                if isinstance(n, (ast.Constant, ast.JoinedStr))
            ]
    prose = re.sub(r"```.*?```|\$\$.*?\$\$|^\|.*$|^#+ ", "", before, flags=re.S | re.M)
    prose = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`$]", r"\1", prose).split("\n\n")[-1]
    last = re.split(r"(?<=[.?!])\s+", " ".join(prose.split()))[-1].rstrip(": ")
    shown = "; ".join(dict.fromkeys(" ".join(n.split()) for n in named if n.strip()))
    return html.escape(
        f"{last or 'Figure'}{'. Shown: ' + shown if shown else ''}".replace("[", "(")
        .replace("]", ")")
        .replace("\n", " ")
    )


def outputs(cell, before, folder, stem, count):
    """A cell's outputs as Markdown; pictures are written to `folder`."""
    said = []
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        if "text" in o and o.get("name") != "stderr":
            said.append(
                "```{ .text .output }\n"
                + re.sub(r"\x1b\[[0-9;]*m", "", o["text"]).split("\r")[-1].rstrip()
                + "\n```"
            )
        elif "image/png" in data:
            file = folder / f"{stem}-{next(count)}.png"
            file.write_bytes(base64.b64decode(data["image/png"]))
            said.append(f"![{alt(cell.source, before)}](images/{file.name})")
        elif "image/svg+xml" in data:
            file = folder / f"{stem}-{next(count)}.svg"
            file.write_text("".join(data["image/svg+xml"]), encoding="utf-8")
            said.append(f"![{alt(cell.source, before)}](images/{file.name})")
        elif "sginet-slider" in data.get("text/html", ""):
            said.append(data["text/html"])
        elif "text/markdown" in data:
            said.append(data["text/markdown"])
        elif "text/plain" in data and not re.match(
            r"<(IPython|Figure)", data["text/plain"]
        ):
            said.append("```{ .text .output }\n" + data["text/plain"] + "\n```")
    return said


def linked(text, depth, symbols, known):
    """Markdown with links to notebooks as links to pages, and names of the package as links."""

    def link(m):
        target, _, anchor = m[2].partition("#")
        if re.match(r"\w+:", target) or not target:
            return m[0].replace("#" + anchor, "#" + anchor.lower())
        page = (
            str(Path(target).with_suffix(".md"))
            if target.endswith(".ipynb")
            else (
                "../" * depth + TEXTS[found]
                if (found := target.replace("../", "")) in TEXTS
                else target
            )
        )
        return (
            f"{m[1]}({page}{'#' + anchor.lower() if anchor else ''})"
            if page.endswith((".md", ".png", ".svg"))
            and not page.startswith("../" * (depth + 1))
            else m[1][m[1].index("[") + 1 : -1]
        )

    def name(m):
        return (
            f"[`{m[1]}`]({'../' * depth}api/{symbols[m[1]][0]}.md#{symbols[m[1]][1]})"
            if m[1] in symbols and len(m[1]) > 4 and m[1] not in COMMON
            else m[0]
        )

    parts = re.split(
        r"(```.*?```)",
        re.sub(
            r"\[!\[[^]]*\]\([^)]*badge[^)]*\)\]\(([^)]*)\)",
            r"[Open this lesson in Colab](\1)",
            text,
        ),
        flags=re.S,
    )
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(!?\[[^]\n]*\])\(([^)\s]+)\)", link, parts[i])
        parts[i] = "\n".join(
            line
            if line.startswith("#")
            else re.sub(r"(?<![\[`])`(\w+)`(?![\]`])", name, line)
            for line in parts[i].split("\n")
        )
    return "".join(parts)


def page(path, symbols, known):
    """A notebook as a Markdown page."""
    depth = len(path.relative_to(ROOT / "nbs").parts) - 1
    folder = WORK / "site" / path.parent.relative_to(ROOT / "nbs") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    said, before, count = [], "", iter(range(1000))
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            said.append(linked(cell.source, depth, symbols, known))
            before = cell.source
        elif cell.cell_type == "code" and not re.search(
            r"^#\| *(hide|default_exp)\b", cell.source, re.M
        ):
            code = re.sub(r"^#\|.*\n?|^#@title.*\n", "", cell.source, flags=re.M).strip(
                "\n"
            )
            block = "\n\n".join(
                [
                    f"```python\n{code}\n```" if code else "",
                    *outputs(cell, before, folder, path.stem, count),
                ]
            )
            if "solution" in cell.metadata.get("tags", []):
                block = '??? note "Solution"\n\n' + "\n".join(
                    "    " + line if line else "" for line in block.split("\n")
                )
            said.append(block)
    return "\n\n".join(said) + "\n"


# ---- site
ROOMS = {  # folder below nbs/: its heading in the navigation, in the order one reads
    ".": "Pictures and metrics",
    "losses": "Losses",
    "models": "Models",
    "data": "Data",
    "train": "Training",
    "interpret": "Looking inside",
    "baselines": "Other methods",
    "evaluate": "Evaluation",
    "cli": "Commands",
}


def title(path):
    """A notebook's heading."""
    cells = nbformat.read(path, 4).cells
    first = next(c.source for c in cells if c.cell_type == "markdown")
    return re.sub(r"^#+ ", "", first.split("\n")[0])


def pages_in(notebooks, folder):
    """The navigation's entries for the notebooks of a folder."""
    return [
        {title(p): str(p.relative_to(ROOT / "nbs").with_suffix(".md"))}
        for p in notebooks
        if p.parent == ROOT / "nbs" / folder and p.stem not in ("index", "app")
    ]


def api_by_room(names):
    """The navigation's entries for the modules' pages, by room."""
    rooms = {}
    for name in names:
        room = ROOMS[name.split(".")[0] if "." in name else "."]
        rooms.setdefault(room, []).append({f"sginet.{name}": f"api/{name}.md"})
    return [{room: rooms[room]} for room in ROOMS.values() if room in rooms]


def navigation(notebooks, names):
    """The pages in order, by part."""
    rooms = [{head: pages_in(notebooks, room)} for room, head in ROOMS.items()]
    lessons = pages_in(notebooks, "lessons")
    lessons.append({"Glossary": "lessons/glossary.md"})
    lessons.append({"For teachers": "lessons/teacher.md"})
    more = zip(("Models", "Data", "Contributing", "Changes"), TEXTS.values())
    parts = [
        {"Start": "index.md"},
        {"Lessons": lessons},
        {"Notebooks": [room for room in rooms if any(room.values())]},
        {"Results": pages_in(notebooks, "results")},
        {"API": api_by_room(names)},
        {"More": [{head: page} for head, page in more]},
    ]
    return [part for part in parts if all(part.values())]


def write_pages(notebooks, found, source_of):
    """Write every page of the site as Markdown into the working folder."""
    symbols = {
        name: (module, name.lower() if name in defined(tree) else "constants")
        for module, _, tree in found
        for name in exported(tree)
    }
    site, known = WORK / "site", {p.name for p in notebooks}
    for path in notebooks:
        target = site / path.relative_to(ROOT / "nbs").with_suffix(".md")
        target.write_text(page(path, symbols, known), encoding="utf-8")
    for path in (ROOT / "nbs/lessons").glob("*.md"):
        text = linked(path.read_text(encoding="utf-8"), 1, symbols, known)
        (site / "lessons" / path.name).write_text(text, encoding="utf-8")
    for name, target in TEXTS.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](nbs/", "](")
        text = linked(text, 0, symbols, known)
        (site / target).write_text(text, encoding="utf-8")
    for name, source, tree in found:
        text = api_page(name, source, tree, source_of[name])
        (site / "api" / f"{name}.md").write_text(text, encoding="utf-8")


def build_try_page(folder):
    """Build the page that derains in the browser; False where npm is missing or fails."""
    script = ROOT / ".ci/try_page.py"
    if not script.exists() or not shutil.which("npm"):
        print("the page that derains in the browser is left out: it needs npm")
        return False
    done = subprocess.run([sys.executable, script, folder])
    return done.returncode == 0 and (folder / "index.html").exists()


def draw_formulas(out):
    """Turn the formulas of all pages into MathML, which browsers draw without a script."""
    formula = re.compile(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S
    )

    def drawn(m):
        display = "inline" if m[1] == "span" else "block"
        return mathml(html.unescape(m[2]), display=display).replace(
            BAR, "<mspace /></mover>"
        )

    for file in out.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        new = formula.sub(drawn, text)
        if new != text:
            file.write_text(new, encoding="utf-8")


def build(out):
    """Write the site to the folder `out`."""
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "site/api").mkdir(parents=True)
    found, source_of = modules()
    notebooks = [
        p
        for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
        if not re.search(r"/[_.]", str(p.relative_to(ROOT.parent)))
    ]
    shutil.copytree(ROOT / "nbs/images", WORK / "site/images")
    shutil.copy(ROOT / ".ci/docs.css", WORK / "site")
    write_pages(notebooks, found, source_of)
    nav = navigation(notebooks, [name for name, *_ in found])
    if build_try_page(WORK / "site/try"):
        nav.insert(1, {"Try it": "try/index.html"})
    config = {
        "INHERIT": "../.ci/mkdocs.yml",
        "docs_dir": "site",
        "site_dir": str(out.resolve()),
        "nav": nav,
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (WORK / "mkdocs.yml").write_text(text, encoding="utf-8")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*mkdocs, "--config-file", WORK / "mkdocs.yml"],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    if done.returncode:
        sys.exit(done.returncode)
    draw_formulas(out)
    count = len(list(out.rglob("*.html")))
    print(f"{count} pages; to read them: python -m http.server --directory {out}")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs"))
