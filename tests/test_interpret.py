"""Interventions, attribution and queries on the CPU and, where there is one, on a GPU."""

import pytest
import torch

from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.interpret.attribution import (
    ATTRIBUTION_METHODS,
    IntegratedGradients,
    shapley_shares,
)
from sginet.interpret.explanations import ExplanationSettings, explain
from sginet.interpret.interventions import (
    guidance_gain,
    intervene,
    permute_classes,
    score_stages,
    sim_inputs,
)
from sginet.interpret.layers import LayerSettings, show_layer
from sginet.interpret.queries import GuidanceSettings, show_guidance
from sginet.interpret.session import SceneSettings, Session
from sginet.interpret.taps import Taps
from sginet.interpret.targets import removal
from sginet.models.sginet import SGINet

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def case():
    scene = draw_scene(3, 64, 128)
    return render(scene.image, 100, 1).rainy, scene.image, scene.classes


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=cuda)])
def model(request):
    return SGINet.from_pretrained("tiny").to(request.param)


def test_interventions(model, case):
    rain, clean, labels = case
    device = next(model.parameters()).device
    inputs = sim_inputs(model, rain.to(device))
    other = permute_classes(inputs.cut(inputs.guidance))
    change = intervene(model, inputs, other, clean, labels)
    assert change.refined.device == device
    assert torch.isfinite(torch.tensor(change.total))
    with Taps(model, "sim.sie.2", "sem") as taps, torch.no_grad():
        model(rain.to(device))
    assert {x.device.type for x in taps.values()} == {"cpu"}
    assert score_stages(model, [case])["refined"][0].errors.sum() > 0
    assert len(guidance_gain(model, [case])) == 4


@pytest.mark.parametrize("name", ATTRIBUTION_METHODS)
def test_attribution(model, case, name):
    inputs = sim_inputs(model, case[0].to(next(model.parameters()).device))
    target = removal(model, (20, 40, 30, 60))
    found = ATTRIBUTION_METHODS[name]()(target, inputs)
    for values in found.maps.values():
        assert values.shape == (64, 128)
        assert values.isfinite().all() and values.abs().max() > 0


@pytest.mark.parametrize("size", [(64, 128), (50, 75), (33, 100)])
def test_attributions_add_up_at_any_size(model, size):
    scene = draw_scene(4, *size)
    rain = render(scene.image, 100, 1).rainy.to(next(model.parameters()).device)
    inputs = sim_inputs(model, rain)
    target = removal(model, (5, 5, 25, 50))
    found = IntegratedGradients(steps=4)(target, inputs)
    added = sum(m.double().sum().item() for m in found.maps.values())
    assert abs(added - (found.total + found.delta)) < 1e-4 * max(1, abs(found.total))
    shares = shapley_shares(target, inputs)
    assert abs(sum(shares[:3]) - shares.total) < 1e-4


def test_queries(model):
    session, scene = Session(model), SceneSettings(width=128)
    settings = GuidanceSettings(
        kind="true labels", right="error of the refined picture"
    )
    assert len(show_guidance(session, scene, settings).rows) > 3
    assert show_layer(session, scene, LayerSettings())[0].image.size == (128, 64)
    method = ATTRIBUTION_METHODS["Ablation per class"]()
    found = explain(session, scene, ExplanationSettings(), method)
    assert found.maps["guidance"].device.type == "cpu"


@cuda
def test_cpu_and_gpu_agree(case):
    rain, clean, labels = case
    answers = []
    for device in "cpu", "cuda":
        model = SGINet.from_pretrained("tiny").to(device)
        inputs = sim_inputs(model, rain.to(device))
        answers.append(intervene(model, inputs, labels.to(device), clean).refined.cpu())
    assert (answers[0] - answers[1]).abs().max() < 2e-3
