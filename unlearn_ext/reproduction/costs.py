"""What a step takes: time and memory, of ours and of every baseline in the same way."""

from __future__ import annotations

import copy
import math
import time

import torch

from .. import footprint
from ..baselines import Method, train
from ..control import GradientNorm
from ..history import History
from ..models import I2IModel
from ..objectives import Objectives
from ..run import Run
from .table import OURS, Cost
from .trial import Trial

FEW, MANY = 2, 12  # steps: what goes before the first step is in both runs, and out of their difference


def measure(trial: Trial, method: type[Method] | None) -> Cost:
    """Run some steps of a baseline, or of ours where there is none, and throw the model away."""
    model, objectives = trial.problem.model, trial.problem.training
    _seconds(method, model, objectives, FEW)  # the first of all warms up
    few = _seconds(method, model, objectives, FEW)
    known = _forget_peak(model.device)
    many = _seconds(method, model, objectives, MANY)
    seconds = (many - few) / (MANY - FEW)
    return Cost(trial.family, method.name if method else OURS, seconds, _peak_mb(model.device) if known else math.nan)


def _seconds(method: type[Method] | None, model: I2IModel, objectives: Objectives, steps: int) -> float:
    start = time.perf_counter()
    if method is None:
        Run(copy.deepcopy(model), objectives, History()).train(GradientNorm(), steps)
    else:
        next(train(method, model, objectives, values=[1.0], steps=steps))
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def _forget_peak(device: torch.device) -> bool:
    """Whether there will be a peak of what comes now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    footprint.release()
    return footprint.forget_peak()


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return footprint.peak_mb()
