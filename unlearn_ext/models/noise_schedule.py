"""DDPM's noise schedule (Ho et al., arXiv 2006.11239), read from any scheduler of `diffusers` that has one."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from ..errors import UserError, require
from .loading import loading

__all__ = ["KNOWN", "PREDICTIONS", "check_known", "noise_schedule", "read_scheduler", "sampler"]

# These schedulers sample differently, but their U-Nets are all trained on √ᾱ·image + √(1 − ᾱ)·noise at whole
# timesteps. Flow matching, EDM, score SDEs, consistency models and models distilled to few steps are not.
KNOWN = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler",
)  # fmt: skip
PREDICTIONS = ("epsilon", "sample", "v_prediction")

# Schedulers are `Any` here: type checkers see the classes of diffusers as placeholders without attributes.


def read_scheduler(path_or_id: str | os.PathLike[str]) -> Any:
    """Load the scheduler beside a U-Net, as the class that its configuration names.

    Raises:
        UserError: there is no configuration, or it does not name a class of ``KNOWN``.
    """
    diffusers = require("diffusers", "images")
    with loading("scheduler beside the U-Net", path_or_id):
        config = diffusers.DDPMScheduler.load_config(path_or_id)
        name = config.get("_class_name")
        if name is None:
            raise UserError(
                f"scheduler_config.json in {path_or_id} names no class: write into it the scheduler that the U-Net was "
                'trained with, such as "_class_name": "DDPMScheduler".'
            )
        check_known(name)
        old = {"prediction_type": "sample"} if config.get("predict_epsilon") is False else {}  # diffusers before 0.10
        return getattr(diffusers, name).from_pretrained(path_or_id, **old)


def check_known(name: str) -> None:
    """Check that the schedulers of a class have DDPM's noise schedule.

    Raises:
        UserError: the class is not in ``KNOWN``.
    """
    if name not in KNOWN:
        raise UserError(
            f"the scheduler is a {name}, but only those with DDPM's noise schedule are supported: {', '.join(KNOWN)}; "
            "give the one that the U-Net was trained with."
        )


def noise_schedule(scheduler: Any) -> Any:
    """Return a scheduler whose ``add_noise`` adds the noise that the U-Net was trained on.

    Args:
        scheduler: of a class in ``KNOWN``; only its betas and its configuration are read.

    Returns:
        A ``DDPMScheduler`` with the same betas.

    Raises:
        UserError: the scheduler is of another class or has unsupported settings; or its betas are not one number per
            timestep above 0 and at most 1, or leave nothing of the image before the last timestep.
    """
    check_known(type(scheduler).__name__)
    config, betas = scheduler.config, scheduler.betas
    if config.prediction_type not in PREDICTIONS:
        raise UserError(
            f"the U-Net predicts {config.prediction_type} according to its scheduler; known are "
            f"{', '.join(PREDICTIONS)}."
        )
    if config.get("use_flow_sigmas") or config.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            "the scheduler has use_flow_sigmas or continuous timesteps; only DDPM's noise schedule on whole timesteps "
            "is supported: give the scheduler that the U-Net was trained with."
        )
    if config.get("thresholding"):
        raise UserError(
            "the scheduler has thresholding, which needs the whole predicted image, but the U-Net predicts only the "
            "hidden pixels: set thresholding to false in scheduler_config.json."
        )
    steps, left = config.num_train_timesteps, 1 - betas  # 1 if beta is so small that rounding removes it
    if len(betas) != steps or not ((left >= 0) & (left < 1)).all():
        raise UserError(
            f"the scheduler has {len(betas)} betas from {betas.min():.3g} to {betas.max():.3g} for {steps} timesteps; "
            "it must have one per timestep, above 0 and at most 1: correct num_train_timesteps, trained_betas, "
            "beta_start or beta_end in scheduler_config.json."
        )
    ddpm = require("diffusers", "images").DDPMScheduler(num_train_timesteps=steps, trained_betas=betas.tolist())
    if not (ddpm.alphas_cumprod[:-1] > 0).all():
        raise UserError(
            "the scheduler's betas leave nothing of the image before the last timestep: correct beta_start or beta_end "
            "in scheduler_config.json."
        )
    return ddpm


def sampler(scheduler: Any, ddpm: Any, steps: int) -> tuple[Any, torch.Tensor]:
    """Return DDIM (Song et al., arXiv 2010.02502) over some of the timesteps that a U-Net was trained on.

    DDIM of `diffusers` computes the previous timestep from the number of steps, which is exact only if this number
    divides the number of timesteps. Here its schedule contains only the chosen timesteps, so it steps from each to the
    next.

    Args:
        scheduler: defines what the U-Net predicts, which timesteps are chosen (``timestep_spacing``, ``steps_offset``)
            and whether images are clipped.
        ddpm: the scheduler's noise schedule, a ``DDPMScheduler``.
        steps: maximum number of timesteps.

    Returns:
        A ``DDIMScheduler``, whose own timesteps are 0, 1, …; and the U-Net's timestep for each, int64 [S], ascending.

    Raises:
        UserError: the spacing is unknown, or the U-Net predicts noise and sampling begins where nothing of the image
            is left.
    """
    config = scheduler.config
    timesteps = _chosen(len(ddpm.alphas_cumprod), steps, config)
    kept = ddpm.alphas_cumprod[timesteps]
    if config.prediction_type == "epsilon" and kept[-1] == 0:
        raise UserError(
            "sampling begins where nothing of the image is left (rescale_betas_zero_snr), and there the predicted "
            'noise does not determine the image: set timestep_spacing to "leading" in scheduler_config.json, or use '
            "other betas."
        )
    ddim = require("diffusers", "images").DDIMScheduler(
        num_train_timesteps=len(kept), prediction_type=config.prediction_type,
        clip_sample=config.get("clip_sample", True), clip_sample_range=config.get("clip_sample_range", 1.0),
    )  # fmt: skip
    ddim.alphas_cumprod = kept
    ddim.set_timesteps(len(kept))
    return ddim, timesteps


def _chosen(count: int, steps: int, config: dict) -> torch.Tensor:
    """Return at most ``steps`` of the timesteps 0 … count − 1, int64, ascending, with the spacing in ``config``."""
    spacing, stride = config.get("timestep_spacing", "leading"), math.ceil(count / steps)
    if spacing == "linspace":
        return torch.linspace(0, count - 1, min(steps, count)).round().long()
    if spacing == "trailing":
        return torch.arange(count - 1, -1, -stride).flip(0)
    if spacing == "leading":
        return (torch.arange(0, count, stride) + config.get("steps_offset", 0)).clamp(0, count - 1).unique()
    raise UserError(
        f"the scheduler's timestep_spacing is {spacing}; known are leading, trailing and linspace: correct it in "
        "scheduler_config.json."
    )
