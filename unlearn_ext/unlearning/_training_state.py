"""The training state that a killed run needs to resume with bit-identical results."""

from __future__ import annotations

from typing import Any

import torch

from .._utils.distributed import assign

State = dict[str, Any]


def training_state(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> State:
    """Return parameters, optimizer state and the loss scaler's state."""
    return {
        "parameters": _parameters(optimizer),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


@torch.no_grad()
def restore(state: State, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Restore the state that :func:`training_state` returned in an earlier process."""
    parameters = _parameters(optimizer)
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        assign(parameter, value)
    for number, moments in state["optimizer"]["state"].items():
        parameter = parameters[number]
        for name, value in moments.items():
            if value.shape == parameter.shape:  # keep the strides: they set the order of summation
                moments[name] = torch.empty_like(parameter, dtype=value.dtype)
                assign(moments[name], value)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return optimizer.param_groups[0]["params"]
