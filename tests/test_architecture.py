"""The drawings in nbs/images are those of the present network."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from sginet.interpret.architecture import draw_architecture
from sginet.models.layers import CIG
from sginet.models.sginet import SGINet

IMAGES = Path(__file__).resolve().parent.parent / "nbs/images"
FILES = {"network": "architecture", "frm": "frm", "sem": "sem", "sim": "sim"}


@pytest.fixture(scope="module")
def reference():
    with torch.device("meta"):
        return SGINet()


@pytest.mark.parametrize("part", FILES)
def test_a_committed_drawing_is_what_the_network_gives(reference, part):
    file = IMAGES / f"{FILES[part]}.svg"
    drawn = draw_architecture(reference, part).svg
    assert file.read_text(encoding="utf-8") == drawn, (
        "run nbs/interpret/18_architecture.ipynb"
    )


@pytest.mark.parametrize("part", FILES)
def test_a_drawing_is_xml_that_reaches_for_nothing(part):
    text = (IMAGES / f"{FILES[part]}.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert int(root.get("width")) <= 700
    assert "prefers-color-scheme" in text
    assert text.count("http") == 1  # the name space alone


def test_numbers_follow_the_network():
    with torch.device("meta"):
        wide = SGINet(width=48, sem="pspnet50", guidance="onehot")
    drawn = draw_architecture(wide, "sim").svg
    assert "768 · 1/32" in drawn and "22 · 1" in drawn


def test_a_changed_connection_is_not_drawn():
    with torch.device("meta"):
        model = SGINet(width=4, sem="small")

        class WithoutSkip(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.cig = CIG(8, 4)

            def forward(self, x):
                return self.cig(x[:, :8])

        model.frm.d3 = WithoutSkip()
    with pytest.raises(ValueError, match="d3 takes 8 channels"):
        draw_architecture(model, "frm")
