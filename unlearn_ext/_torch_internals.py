"""Private APIs of torch, gathered here so that a new torch release is checked in one file.

Each has no public equivalent, or an expensive one. Checked with torch 2.13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C._autograd import _profiler_enabled as profiler_enabled  # whether a profiler records now
from torch._compile import _disable_dynamo as disable_dynamo  # `torch.compiler.disable` imports all of torch._dynamo
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks
from torch.utils._pytree import tree_leaves

__all__ = [
    "below_autograd",
    "disable_dynamo",
    "global_post_hooks",
    "global_pre_hooks",
    "is_dtensor",
    "is_unscaled",
    "is_view",
    "local_shard",
    "multiply_foreach_",
    "overlaps_itself",
    "placement_spec",
    "profiler_enabled",
    "tree_leaves",
    "unscale_foreach_",
    "use_count",
    "version",
]

unscale_foreach_ = torch._amp_foreach_non_finite_check_and_unscale_  # GradScaler itself unscales `p.grad` only
multiply_foreach_ = torch._foreach_mul_  # one kernel for all tensors
overlaps_itself = torch._debug_has_internal_overlap  # 0: no, 1: yes, 2: not decidable from the strides
is_view = Tensor._is_view  # no public flag; `_base` is private too


def use_count(tensor: Tensor) -> int:
    """Return the number of C++ references to a tensor, which includes its views; Python counts only its own."""
    count: int = tensor._use_count()  # type: ignore[attr-defined]
    return count


def version(tensor: Tensor) -> int:
    """Return the number of in-place writes to a tensor and its views."""
    return tensor._version


def is_unscaled(scaler: GradScaler, optimizer: Optimizer) -> bool:
    """Return whether ``scaler.unscale_(optimizer)`` was called since the last step."""
    state = scaler._per_optimizer_states.get(id(optimizer))
    return state is not None and state["stage"] is OptState.UNSCALED


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; unlike ``isinstance``, it does not import ``torch.distributed.tensor``."""
    return hasattr(tensor, "_spec")


def placement_spec(tensor: Any) -> Any:
    """Return a DTensor's mesh and placements in one lookup, without its Python properties."""
    return tensor._spec


def local_shard(tensor: Any) -> Tensor:
    """Return a DTensor's local tensor; ``to_local`` would record the operation for autograd."""
    shard: Tensor = tensor._local_tensor
    return shard
