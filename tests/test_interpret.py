"""Looking inside on a GPU: the same answers as on the CPU."""

import pytest
import torch

from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.interpret.attribution import ATTRIBUTION_METHODS, shapley_shares
from sginet.interpret.targets import removal
from sginet.interpret.queries import (
    AttributionState,
    GuidanceState,
    LevelState,
    Studio,
    Weather,
    explain,
    show_guidance,
    show_level,
)
from sginet.interpret.taps import Taps
from sginet.interpret.interventions import sim_inputs, score_stages, intervene, permute_classes, guidance_gain
from sginet.models.sginet import SGINet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def case():
    scene = draw_scene(3, 96, 192)
    return render(scene.image, 100, 1).rainy, scene.image, scene.classes


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def model(request):
    return SGINet.from_pretrained("tiny").to(request.param)


def test_every_question_is_answered_on_the_device(model, case):
    rain, clean, labels = case
    device = next(model.parameters()).device
    inputs = sim_inputs(model, rain.to(device))
    change = intervene(
        model, inputs, permute_classes(inputs.cut(inputs.guidance)), clean, labels
    )
    assert change.refined.device == device and torch.isfinite(
        torch.tensor(change.total)
    )
    with Taps(model, "sim.sie.2", "sem") as taps, torch.no_grad():
        model(rain.to(device))
    assert {x.device.type for x in taps.values()} == {"cpu"}
    assert (
        score_stages(model, [case])["refined"][0].errors.sum() > 0
        and len(guidance_gain(model, [case])) == 4
    )
    target = removal(model, (20, 40, 40, 60))
    for kind in ATTRIBUTION_METHODS.values():
        assert all(
            m.isfinite().all() and m.abs().max() > 0
            for m in kind()(target, inputs).maps.values()
        )
    found = shapley_shares(target, inputs)
    assert abs(sum(found[:3]) - found.total) < 1e-4


def test_explorers_answers_on_the_device(model):
    studio, weather = Studio(model), Weather(width=256)
    assert (
        len(
            show_guidance(
                studio,
                weather,
                GuidanceState(kind="true labels", right="error of the refined picture"),
            ).rows
        )
        > 3
    )
    assert show_level(studio, weather, LevelState())[0].size == (256, 128)
    assert (
        explain(studio, weather, AttributionState(), ATTRIBUTION_METHODS["Ablation per class"]())
        .maps["guidance"]
        .device.type
        == "cpu"
    )


def test_cpu_and_gpu_agree(case):
    rain, clean, labels = case
    answers = []
    for device in "cpu", "cuda":
        model = SGINet.from_pretrained("tiny").to(device)
        inputs = sim_inputs(model, rain.to(device))
        answers.append(intervene(model, inputs, labels.to(device), clean).refined.cpu())
    assert (answers[0] - answers[1]).abs().max() < 2e-3
