"""What fastai's users do with any Learner works with ours, or is refused in words."""

import copy
import inspect
import math
import warnings

import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.schedule import fit_one_cycle, lr_find  # noqa: F401 (Learner's)
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from matplotlib.figure import Figure

from sginet.data.loaders import SampleLoader
from sginet.data.sources import drawn_scenes
from sginet.losses.sginet_loss import vgg16_features
from sginet.models import inference
from sginet.models.sem import SmallSEM
from sginet.models.sginet import SGINet
from sginet.train.learner import DerainLearner, cpu_has_bfloat16, sginet_learner
from sginet.train.recipes import BASE, optimiser, recipe, schedule
from sginet.train.sem import sem_learner


@pytest.fixture(scope="module")
def vgg():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vgg16_features(width=8)


def small_dls(rates):
    """Loaders of four drawn scenes to train on, and of two to validate on."""
    held_out = drawn_scenes(2, 64, 96, first=10**6, rates=rates, seed=0)
    dls = DataLoaders(
        SampleLoader(drawn_scenes(4, 64, 96, rates=rates), 2, 64),
        SampleLoader(held_out, 1, train=False),
        device="cpu",
    )
    for dl in dls:
        dl.rng.seed(0)
    return dls


def make(vgg, path, **kwargs):
    """A Learner of a tiny network on four drawn scenes."""
    torch.manual_seed(0)
    dls = small_dls((100, 200))
    model = SGINet(width=2, sem=SmallSEM(width=4), output="residual").train()
    return sginet_learner(dls, model, vgg, csd_from=0, path=path, **kwargs)


@pytest.fixture
def learn(vgg, tmp_path):
    learner = make(vgg, tmp_path)
    with learner.no_bar(), learner.no_logging():
        yield learner


def weights(learn):
    """A copy of the network's parameters."""
    return [p.detach().clone() for p in learn.network.parameters()]


def same(a, b):
    return all(map(torch.equal, a, b))


def test_get_preds(learn):
    preds, targets = learn.get_preds()
    rain, clean, _ = learn.dls.valid.one_batch()
    learn.model.eval()
    with torch.no_grad():
        refined = learn.model(rain).refined
    assert len(preds) == learn.dls.valid.n
    assert torch.allclose(preds[0], refined[0], atol=1e-6)
    assert torch.equal(targets[0][0], clean[0])
    inputs, _, _, losses = learn.get_preds(with_input=True, with_loss=True)
    assert torch.equal(inputs[0], rain[0]) and losses.shape == (learn.dls.valid.n,)


def test_predict_and_test_dl(learn):
    rain = learn.dls.valid.one_batch()[0][0]
    _, _, refined = learn.predict(rain)
    [preds, _] = learn.get_preds(dl=learn.dls.test_dl([rain, rain[:, :50, :60]]))
    assert refined.shape == rain.shape and torch.allclose(preds[0], refined, atol=1e-6)
    assert preds[1].shape == (3, 50, 60)


def test_loaders(learn):
    dls = learn.dls
    rain, clean, labels = dls.one_batch()
    assert rain.shape == clean.shape == (2, 3, 64, 64) and labels.shape == (2, 64, 64)
    assert len(dls.train.new(bs=1).one_batch()[0]) == 1
    assert isinstance(dls.show_batch(max_n=2), Figure)


def test_show_results(learn):
    before = learn.model.training
    assert len(learn.show_results(max_n=1).axes) == 5
    assert len(learn.show_results(0, max_n=2).axes) == 10
    assert learn.model.training == before


def test_precisions(learn):
    with pytest.raises(ValueError, match="float16 is for CUDA"):
        learn.to_fp16()
    if cpu_has_bfloat16():
        assert learn.to_bf16() is learn and learn.low_precision == torch.bfloat16
        learn.fit(1, 1e-3)
    else:
        with pytest.raises(ValueError, match="no bfloat16 units"):
            learn.to_bf16()
    assert learn.to_fp32().low_precision is None
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_export_and_load_learner(learn, tmp_path):
    rain = learn.dls.valid.one_batch()[0][0]
    _, _, expected = learn.predict(rain)
    learn.export("all.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a pickle may run code
        loaded = load_learner(tmp_path / "all.pkl")
    with loaded.no_bar(), loaded.no_logging():
        _, _, found = loaded.predict(rain)
    assert torch.allclose(found, expected, atol=1e-6)


def test_save_pretrained(learn, tmp_path):
    learn.save_pretrained(tmp_path / "model")
    model = SGINet.from_pretrained(tmp_path / "model")
    assert same(weights(learn), [p.detach() for p in model.parameters()])
    with pytest.raises(FileExistsError):
        learn.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["default", "reference", "small"])
def test_lr_find_on_any_setting(vgg, tmp_path, name):
    settings = recipe(name)
    learner = make(vgg, tmp_path, opt_func=optimiser(settings), clip=settings["clip"])
    before = weights(learner)
    with learner.no_bar(), learner.no_logging():
        found = learner.lr_find(num_it=8, show_plot=False)
        assert 0 < found.valley < math.inf and same(before, weights(learner))
        learner.fit(1, 1e-3, cbs=schedule(dict(settings, epochs=1)))
    assert not same(before, weights(learner))


def test_fine_tune_and_fits(learn):
    learn.fine_tune(1, 1e-3, freeze_epochs=1)
    learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    learn.fit_flat_cos(1, 1e-3)
    learn.fit_sgdr(1, 1, 1e-3)


def test_freeze_by_parts(learn):
    frm = [p.detach().clone() for p in learn.model.frm.parameters()]
    sim = [p.detach().clone() for p in learn.model.sim.parameters()]
    learn.freeze()
    learn.fit(1, 1e-3)
    assert same(frm, learn.model.frm.parameters())
    assert not same(sim, learn.model.sim.parameters())
    learn.unfreeze()
    learn.fit(1, slice(1e-5, 1e-3))
    assert not same(frm, learn.model.frm.parameters())
    rates = [group["lr"] for group in learn.opt.hypers]
    assert rates == pytest.approx([1e-5, 1e-3])
    assert not any(p.requires_grad for p in learn.model.sem.parameters())


def test_sem_is_a_group_when_it_learns(vgg, tmp_path):
    learner = make(vgg, tmp_path, sem_learns=True)
    learner.create_opt()
    assert len(learner.opt.param_lists) == 3


def test_validate_save_and_load(learn):
    before = learn.validate()
    learn.save("now")
    learn.fit(1, 1e-2)
    assert list(learn.validate()) != list(before)
    learn.load("now")
    again = learn.validate()
    assert list(again[:5]) == pytest.approx(list(before[:5]), rel=1e-6)


def test_summary(learn):
    text = learn.summary()
    assert "Conv2d" in text and "Total params" in text


def test_callbacks_of_others(learn, tmp_path):
    callbacks = [
        SaveModelCallback(monitor="psnr", fname="best"),
        EarlyStoppingCallback(monitor="psnr", patience=5),
        CSVLogger(fname="history.csv"),
    ]
    learn.fit(2, 1e-3, cbs=callbacks)
    assert (tmp_path / "models" / "best.pth").exists()
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("epoch,train_loss,valid_loss,psnr")


def test_early_stopping_stops(learn):
    stop = EarlyStoppingCallback(monitor="psnr", patience=1, min_delta=100)
    learn.fit(5, 1e-3, cbs=stop)
    assert len(learn.recorder.values) < 5


def test_graph_and_plot_of_the_loss(vgg, tmp_path):
    learn = make(vgg, tmp_path)  # with its progress bar, which the graph needs
    with learn.no_logging():
        learn.fit(1, 1e-3, cbs=ShowGraphCallback())
    axes = learn.recorder.plot_loss(skip_start=0)
    assert len(axes.lines) == 2


@pytest.mark.parametrize("mix", [MixUp, CutMix])
def test_mixing_is_refused(learn, mix):
    before = weights(learn)
    with pytest.raises(ValueError, match="MixUp and CutMix mix pictures"):
        learn.fit(1, 1e-3, cbs=mix())
    assert same(before, weights(learn))
    learn.fit(1, 1e-3)


def test_interpretation(learn):
    losses, indices = Interpretation.from_learner(learn).top_losses(2)
    assert losses[0] >= losses[1] and len(indices) == 2


def test_a_csd_weight_set_between_two_fits_stays(learn):
    learn.fit(1, 1e-3)
    learn.loss_func.weights["csd"] = 0.25
    learn.rain_for_loss.csd_from = 1
    learn.fit(1, 1e-3)
    assert learn.loss_func.weights["csd"] == 0.25


def test_a_learner_is_copied(learn):
    other = copy.deepcopy(learn.model)
    before = weights(learn)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert same(before, weights(learn))


def test_sem_learner(tmp_path):
    torch.manual_seed(0)
    learn = sem_learner(small_dls((0,)), SmallSEM(width=4, aux=True), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        preds, _ = learn.get_preds()
        assert preds.shape[1] == 19
        losses, _ = Interpretation.from_learner(learn).top_losses(2)
        assert losses[0] >= losses[1]
        assert 0 < learn.lr_find(num_it=5, show_plot=False).valley < math.inf


def test_every_setting_has_a_default():
    assert recipe() == BASE


@pytest.mark.parametrize("ours", [DerainLearner, SampleLoader])
def test_overridden_methods_take_what_fastai_passes(ours):
    """By name and in order: a call that works with fastai's own class works here."""
    overridden = [name for name in vars(ours) if callable(vars(ours)[name])]
    for name in overridden:
        theirs = getattr(ours.__mro__[1], name, None)
        if theirs is None or name == "__init__":
            continue
        wanted = list(inspect.signature(theirs).parameters.values())
        found = list(inspect.signature(vars(ours)[name]).parameters.values())
        positional = [p.name for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [p.name for p in found][: len(positional)] == positional, name
        for p in found[len(positional) :]:
            assert p.default is not p.empty or p.kind in (
                p.VAR_POSITIONAL,
                p.VAR_KEYWORD,
            )


def test_a_learner_never_takes_the_quick_way(learn, monkeypatch):
    """Neither validation nor predictions do: they are of the network as it is trained."""
    asked = []

    def refined(model, rain):
        asked.append(rain)
        return rain

    monkeypatch.setattr(inference, "refined", refined)
    rain = learn.dls.valid.one_batch()[0]
    learn.model.derain(rain)
    assert len(asked) == 1  # `derain` takes it
    learn.validate()
    learn.get_preds()
    learn.show_results(max_n=1)
    assert len(asked) == 1
