"""SGINet: remove rain from street photographs, with segmentation and deraining helping each other.

The names below are imported from their modules when they are first used, so that
`import sginet` stays fast. Everything else is imported from its own module.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors read
    from .data.loaders import rain_dls as rain_dls
    from .data.rain import render as render
    from .data.scenes import draw_scene as draw_scene
    from .data.weather import Weather as Weather
    from .image_codecs import ImageError as ImageError
    from .images import CLASSES as CLASSES
    from .interpret.attribution import attribute as attribute
    from .interpret.attribution_explorer import (
        AttributionExplorer as AttributionExplorer,
    )
    from .interpret.rain_explorers import RainExplorer as RainExplorer
    from .interpret.guidance_explorer import GuidanceExplorer as GuidanceExplorer
    from .interpret.interventions import intervene as intervene
    from .interpret.page import app as app
    from .interpret.taps import Taps as Taps
    from .interpret.training_monitor import TrainingMonitor as TrainingMonitor
    from .losses.csd import csd_loss as csd_loss
    from .losses.sginet_loss import SGINetLoss as SGINetLoss
    from .metrics import (
        psnr_y as psnr_y,
        ssim_y as ssim_y,
        SegmentationScore as SegmentationScore,
    )
    from .models.frm import FRM as FRM
    from .models.sem import SEM as SEM, PSPNet as PSPNet
    from .models.sginet import SGINet as SGINet, Derained as Derained
    from .models.sim import SIM as SIM
    from .train.learner import sginet_learner as sginet_learner
    from .train.sem import sem_learner as sem_learner

# fastai 2.8 still calls it on import; a user of sginet can do nothing about that
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__version__ = "0.1.0"

_NAMES = {
    "data.loaders": "rain_dls",
    "data.rain": "render",
    "data.scenes": "draw_scene",
    "data.weather": "Weather",
    "image_codecs": "ImageError",
    "images": "CLASSES",
    "interpret.attribution": "attribute",
    "interpret.attribution_explorer": "AttributionExplorer",
    "interpret.rain_explorers": "RainExplorer",
    "interpret.guidance_explorer": "GuidanceExplorer",
    "interpret.interventions": "intervene",
    "interpret.page": "app",
    "interpret.taps": "Taps",
    "interpret.training_monitor": "TrainingMonitor",
    "losses.csd": "csd_loss",
    "losses.sginet_loss": "SGINetLoss",
    "metrics": "psnr_y ssim_y SegmentationScore",
    "models.frm": "FRM",
    "models.sem": "SEM PSPNet",
    "models.sginet": "SGINet Derained",
    "models.sim": "SIM",
    "train.learner": "sginet_learner",
    "train.sem": "sem_learner",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
