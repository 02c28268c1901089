"""Install this checkout into the running Python's environment, one line a step.

python .ci/install.py [PIP OPTIONS] '.[EXTRA]'

pip names every one of a hundred packages, or nothing at all; this names the steps and the large
downloads, with a bar where there is a terminal. What pip says is in .venv/install.log.
"""

import re
import subprocess
import sys
from pathlib import Path

LARGE = 20e6  # bytes
LOG = Path(sys.prefix) / "install.log"
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def pip(*args):
    """Run pip; yields its lines as they come, and ends the program where pip fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
        open(LOG, "a", encoding="utf-8") as log,
    ):
        said = []
        for line in process.stdout:
            if not line.startswith("Progress "):
                log.write(line)
                said.append(line)
            yield line.strip()
    if process.returncode:
        sys.exit("".join(said[-15:]) + f"pip failed; all that it said is in {LOG}")


def show(lines):
    """Print the steps and the large downloads among pip's lines."""
    large = False
    for line in lines:
        if found := re.match(r"Downloading (\S+) \(([\d.]+) (kB|MB|GB)\)", line):
            name = found[1].rsplit("/", 1)[-1].split("-")[0]
            large = float(found[2]) * UNITS[found[3]] >= LARGE
            if large:
                print(f"downloading {name}, {found[2]} {found[3]}", flush=True)
        elif found := re.match(r"Progress (\d+) of (\d+)", line):
            if large and sys.stdout.isatty():
                draw_bar(int(found[1]), int(found[2]))
        elif line.startswith("Installing collected packages"):
            print(f"installing {line.count(',') + 1} packages", flush=True)


def draw_bar(done, total):
    """A bar on one line, which the last call removes."""
    filled = 40 * done // max(1, total)
    bar = f"[{'=' * filled}{' ' * (40 - filled)}] {100 * done // max(1, total):3} %"
    print("\r\033[K" if done >= total else f"\r{bar}", end="", flush=True)


def main(args):
    """Install with the newest pip, which reports the progress of downloads in words."""
    LOG.unlink(missing_ok=True)
    options, target = args[:-1], args[-1]
    print("updating pip", flush=True)
    for _ in pip("install", *options, "--upgrade", "pip"):
        pass
    print(f"resolving what {target} needs; PyTorch is the largest part", flush=True)
    show(pip("install", "--progress-bar", "raw", *options, "-e", target))
    print("installed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
