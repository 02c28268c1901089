"""Where the fixtures are that are not part of the project."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a shell that starts the tests in the background makes them, and all they start, ignore
# Ctrl-C, which some of them send
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared():
    """The folder of parity numbers and photographs; tests that need it skip without it."""
    folder = Path(os.environ.get("SGINET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"no fixtures at {folder} (set SGINET_SHARED to the folder that holds them)"
        )
    return folder
