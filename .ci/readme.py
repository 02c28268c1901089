"""Print README.md: nbs/index.ipynb as Markdown, with links from the top of the tree."""

import re
from pathlib import Path

from nbconvert import MarkdownExporter

body, _ = MarkdownExporter().from_filename(
    str(Path(__file__).resolve().parent.parent / "nbs/index.ipynb")
)
body = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", body)  # beside the notebook
print(re.sub(r"\]\(\.\./", "](", body).strip())
