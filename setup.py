"""Read settings.ini and hand it to setuptools; nothing about the package is stated here."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
ROOMS = sorted(f.parent.name for f in (HERE / "sginet").glob("*/__init__.py"))
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def lines(key):
    """The non-empty lines of a multi-line setting."""
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


version = re.search(
    r'__version__ = "(.+)"', (HERE / "sginet/__init__.py").read_text(encoding="utf-8")
).group(1)
assert version == cfg["version"], (
    f"sginet/__init__.py says {version}, settings.ini says {cfg['version']}"
)

setup(
    name=cfg["lib_name"],
    version=version,
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        f"Development Status :: {cfg['status']}",
        *(f"Topic :: {topic}" for topic in lines("topic")),
    ],
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={
        "notebooks": lines("notebook_requirements"),
        "export": lines("export_requirements"),
        "dev": [
            *lines("notebook_requirements"),
            *lines("export_requirements"),
            *lines("dev_requirements"),
        ],
    },
    entry_points={"console_scripts": lines("console_scripts")},
    # the shipped weights live at the top of the tree and travel inside the package
    packages=["sginet", *(f"sginet.{room}" for room in ROOMS), "sginet.weights"],
    package_dir={"sginet": "sginet", "sginet.weights": "weights"},
    package_data={
        "sginet.interpret": ["static/*.js", "static/*.css", "static/*.csv"],
        "sginet.weights": [
            "README.md",
            *(
                f"{name}/{file}"
                for name in lines("shipped_weights")
                for file in ("card.json", "config.json", "model.safetensors")
            ),
        ],
    },
    include_package_data=False,  # or everything that MANIFEST.in names goes in as well
)
