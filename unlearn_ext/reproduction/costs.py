"""Time and memory of a training step, measured in the same way for our method and all baselines."""

from __future__ import annotations

import copy
import math
import time

import torch

from .._utils import process_memory
from ..baselines import METHODS, train
from ..optim.control import GradientNorm
from ..unlearning.history import History
from ..unlearning.trainer import Trainer
from .problem import Problem
from .table import OURS, Cost
from .trial import Trial

__all__ = ["FEW", "MANY", "measure"]

FEW, MANY = 2, 8  # steps of two runs; their time difference excludes the time before the first step


def measure(trial: Trial, method: str) -> Cost:
    """Return the cost of a step of a method, from short runs whose models are discarded."""
    problem = trial.problem
    _seconds(method, problem, FEW)  # warm-up
    few = _seconds(method, problem, FEW)
    known = _forget_peak(problem.model.device)
    many = _seconds(method, problem, MANY)
    peak = _peak_mb(problem.model.device) if known else math.nan
    return Cost(trial.family, method, (many - few) / (MANY - FEW), peak)


def _seconds(method: str, problem: Problem, steps: int) -> float:
    start, device = time.perf_counter(), problem.model.device
    if method == OURS:
        Trainer(copy.deepcopy(problem.model), problem.training, History()).train(GradientNorm(), steps)
    else:
        next(train(METHODS[method], problem.model, problem.training, values=[1.0], steps=steps))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forget_peak(device: torch.device) -> bool:
    """Reset the peak memory; return False where the system cannot reset it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    process_memory.release()
    return process_memory.forget_peak()


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return process_memory.peak_mb()
