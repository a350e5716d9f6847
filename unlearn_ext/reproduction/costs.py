"""What a step takes: time and memory, of ours and of every baseline in the same way."""

from __future__ import annotations

import copy
import math
import re
import time
from pathlib import Path

import torch

from ..baselines import Method, train
from ..models import I2IModel
from ..objectives import Objectives
from ..run import History, Run
from .table import OURS, Cost
from .trial import Trial

FEW, MANY = 2, 12  # steps: what goes before the first step is in both runs, and out of their difference


def measure(trial: Trial, method: type[Method] | None) -> Cost:
    """Run some steps of a baseline, or of ours where there is none, and throw the model away."""
    model, objectives = trial.problem.model, trial.problem.training
    _seconds(method, model, objectives, FEW)  # the first of all warms up
    few = _seconds(method, model, objectives, FEW)
    _forget_peak(model.device)
    many = _seconds(method, model, objectives, MANY)
    seconds = (many - few) / (MANY - FEW)
    return Cost(trial.family, method.name if method else OURS, seconds, _peak_mb(model.device))


def _seconds(method: type[Method] | None, model: I2IModel, objectives: Objectives, steps: int) -> float:
    start = time.perf_counter()
    if method is None:
        Run(copy.deepcopy(model), objectives, objectives.settings, History()).descend(alpha=1.0, steps=steps)
    else:
        train(method, model, objectives, value=1.0, steps=steps)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


_FORGET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # Linux; elsewhere the peak is not known


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _FORGET.exists():
        _FORGET.write_text("5")


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _FORGET.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1]) / 2**10
    return math.nan
