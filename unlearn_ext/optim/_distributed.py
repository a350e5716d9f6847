"""Distributed training: collectives that give every process the same sums and values before it solves for λ.

Parameters may be of two kinds, also mixed. *Plain tensors* are replicated, and so are their averaged gradients
(``DistributedDataParallel``): the sums are equal already, and only the constraints' values must be averaged. *DTensors*
are sharded (``fully_shard``, tensor parallelism): the sums are added up over the mesh dimensions that shard a tensor,
and averaged, like the values, over those that replicate it. As a result λ is bitwise equal on every process, and a
value that is not finite on one process makes all of them skip the step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import repeat
from typing import Any, Literal, NoReturn, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch_internals import is_dtensor, local_shard, placement_spec
from ..ops.layout import Operands, Report

#: Type of the optimizers' ``process_group``; a string, since torch may have been built without ``ProcessGroup``.
Replicas: TypeAlias = 'dist.ProcessGroup | Literal["default"] | None'
Members = tuple[int, ...]  # ranks, which identify a process group


def initialised() -> bool:
    """Return whether torch.distributed is initialised; called in every step, so it must be cheap."""
    return dist.is_available() and dist.is_initialized()


def checked(process_group: Replicas) -> Replicas:
    """Return the optimizers' argument ``process_group`` unchanged; raise ``ValueError`` if it is not valid."""
    if process_group is None or process_group == "default":
        return process_group
    if dist.is_available() and isinstance(process_group, dist.ProcessGroup):
        return process_group
    raise ValueError(
        f"process_group={process_group!r} must be a process group that this process is a member of, "
        '"default" for all processes, or None to average nothing'
    )


def made_by_zero() -> bool:
    """Return whether ``ZeroRedundancyOptimizer`` is constructing this optimizer, on a part of the parameters.

    Each process would then solve its own QP, but λ needs the sums over all parameters, and ``hold_constraint`` needs
    all gradients.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = None if module is None else sys._getframe(1)  # the call stack is the only sign of it
    while frame is not None:
        if frame.f_globals is vars(module):
            return True
        frame = frame.f_back
    return False


def refuse_zero() -> NoReturn:
    """Raise ``RuntimeError`` that says what to use instead of ``ZeroRedundancyOptimizer``."""
    raise RuntimeError(
        "ZeroRedundancyOptimizer gives every process a part of the parameters, and each would solve for its own λ; use "
        "fully_shard (FSDP2), which divides the optimizer's state too, or leave control out"
    )


def refuse_fsdp1(params: list[Tensor]) -> None:
    """Raise if ``FullyShardedDataParallel`` (FSDP1) flattened parameters, since its shards are plain tensors.

    Raises:
        RuntimeError: a parameter was flattened; the message says what to use instead.
    """
    if any(getattr(param, "_fsdp_flattened", False) for param in params):
        raise RuntimeError(
            "hold_constraint: the parameters are parts that FullyShardedDataParallel (FSDP1) made, and every process "
            "would solve for its own λ; use fully_shard (FSDP2), whose DTensors say how they are divided"
        )


def averaged(values: list[Tensor | None], process_group: Replicas) -> list[Tensor | None]:
    """Return the values of the constraints (0-d each) averaged over the replicas of plain parameters; float64 then."""
    group = _resolved(process_group)
    if group is None or group.size() == 1:
        return values
    means = torch.stack([value.double() / group.size() for value in values if value is not None])
    dist.all_reduce(means, group=group)
    return list(means)


def has_shards(operands: Operands) -> bool:
    """Return whether any parameter of this step is a DTensor."""
    from torch.distributed.tensor import DTensor

    return any(map(isinstance, _owners(operands), repeat(DTensor)))


class Shards:
    """The local shards of one step's operands, and the collectives that reduce their sums over all processes.

    Sums of tensors with different sharding must be added up over different processes, so a parameter group gets one row
    of ``hyper`` and of ``sums`` for each sharding of its tensors.

    Args:
        operands: operands of which at least one is a DTensor.
        hyper: one row per parameter group.
        process_group: the processes over which plain parameters, if any, are replicated; as in the optimizers.

    Attributes:
        operands: local tensors, sorted by row.
        hyper: one row per pair of parameter group and sharding.

    Raises:
        RuntimeError: a parameter has a ``Partial`` placement, or is a DTensor whose gradient or state is not.
    """

    def __init__(self, operands: Operands, hyper: list[list[float | Tensor]], process_group: Replicas) -> None:
        self._groups: dict[Members, dist.ProcessGroup] = {}
        self._meshes: list[set[int]] = []
        owners = _owners(operands)
        keys = list(zip(operands.groups, self._sharding_groups(owners), strict=True))
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        self.hyper = [hyper[group] for group, _ in rows]
        self._divided = [sharded_over for _, sharded_over in rows]
        self.operands = _local(operands, [rows[key] for key in keys])
        self._add_replicas(process_group, any_plain=not all(is_dtensor(owner) for owner in owners))
        torch.autograd.graph.increment_version(owners)  # the step writes the local tensors, which autograd does not see

    def reduce_(self, sums: Tensor, report: Tensor, rows: Sequence[int]) -> None:
        """Add up or average the sums, and average the values of c, with one collective per process group.

        Args:
            sums: float64 ``[groups, columns]``, see ``layout.Sums``.
            report: buffer of :class:`~unlearn_ext.ops.TwoPhase`.
            rows: index of each constraint of the step among the optimizer's.
        """
        values = report[[1 + row for row in rows], Report.CONSTRAINT]
        block = torch.cat([sums.flatten(), values])
        columns = sums.shape[1]
        for members, group in self._groups.items():
            dist.all_reduce(block, group=group)
            for row, divided in enumerate(self._divided):
                if members not in divided:
                    block[row * columns : (row + 1) * columns] /= len(members)
            block[sums.numel() :] /= len(members)
        sums.copy_(block[: sums.numel()].view_as(sums))
        report[[1 + row for row in rows], Report.CONSTRAINT] = block[sums.numel() :]

    def _sharding_groups(self, owners: Sequence[Tensor]) -> list[frozenset[Members]]:
        """Return the process groups that each tensor is sharded over."""
        known: dict[tuple[int, Any], frozenset[Members]] = {}
        groups: list[frozenset[Members]] = []
        for row, owner in enumerate(owners):
            if not is_dtensor(owner):
                groups.append(frozenset())
                continue
            spec = placement_spec(owner)
            key = (id(spec.mesh), spec.placements)
            if key not in known:
                known[key] = self._sharded_over(spec, row)
            groups.append(known[key])
        return groups

    def _sharded_over(self, spec: Any, row: int) -> frozenset[Members]:
        if any(placement.is_partial() for placement in spec.placements):
            raise RuntimeError(
                f"step: tensor {row} is a DTensor placed {spec.placements}, a sum still to be taken; "
                "redistribute it to Replicate or Shard first"
            )
        self._meshes.append(set(spec.mesh.mesh.flatten().tolist()))
        divided = set()
        for dimension, placement in enumerate(spec.placements):
            members = self._add(spec.mesh.get_group(dimension))
            if not placement.is_replicate():
                divided.add(members)
        return frozenset(divided)

    def _add(self, group: dist.ProcessGroup) -> Members:
        members = tuple(dist.get_process_group_ranks(group))
        if len(members) > 1:
            self._groups.setdefault(members, group)
        return members

    def _add_replicas(self, process_group: Replicas, any_plain: bool) -> None:
        """Add the process group of the replicas, unless it is not needed or a mesh already contains all its ranks."""
        if process_group == "default" and not any_plain:
            return
        group = _resolved(process_group)
        if group is not None and not any(mesh.issuperset(dist.get_process_group_ranks(group)) for mesh in self._meshes):
            self._add(group)


def _resolved(process_group: Replicas) -> dist.ProcessGroup | None:
    return dist.group.WORLD if isinstance(process_group, str) else process_group


def _owners(operands: Operands) -> Sequence[Tensor]:
    """Return the tensors whose placement the other tensors of their row must have."""
    return operands.grads if operands.params[0] is None else operands.params  # type: ignore[return-value]


def _local(operands: Operands, rows: list[int]) -> Operands:
    order = sorted(range(len(rows)), key=rows.__getitem__)
    owners = _owners(operands)

    def local(column: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [_shard(column[i], owners[i], i) for i in order]

    return Operands(
        local(operands.params),
        local(operands.grads),
        local(operands.firsts),
        local(operands.seconds),
        [operands.steps[i] for i in order],
        [rows[i] for i in order],
        [local(column) for column in operands.constraint_grads],
        [local(column) for column in operands.averages],
    )


def _shard(tensor: Tensor | None, owner: Tensor, row: int) -> Tensor | None:
    """Return the local shard of a tensor, first placed like its owner, since a gradient may be ``Partial``."""
    if tensor is None or not is_dtensor(owner):
        return tensor
    if not is_dtensor(tensor):
        raise RuntimeError(f"step: tensor {row} is a DTensor, but its gradient or moment is not")
    sharded: Any = tensor
    spec = placement_spec(owner)
    if placement_spec(sharded).placements != spec.placements:
        sharded = sharded.redistribute(spec.mesh, spec.placements)
    local: Any = local_shard(sharded)
    part: Tensor = local.wait() if hasattr(local, "trigger_wait") else local  # a collective may still be running
    return part


def local_shards(tensors: Sequence[Tensor], owners: Sequence[Tensor]) -> list[Tensor]:
    """Return the local shard of each tensor, placed like its owner; tensors whose owner is plain are unchanged."""
    pairs = zip(tensors, owners, strict=True)
    return [_shard(tensor, owner, row) for row, (tensor, owner) in enumerate(pairs)]  # type: ignore[misc]


def total_norm(norms: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors and all shards, 0-d, the same in every process.

    Args:
        norms: norm of each owner's local shard, 0-d.
        owners: plain tensors and DTensors; replicas, of tensors or of shards, count once.
    """
    rows: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for norm, owner in zip(norms, owners, strict=True):
        rows.setdefault(_sharding_groups(owner) if is_dtensor(owner) else (), []).append(norm)
    squares = []
    for groups, mine in rows.items():
        square = torch.stack(mine).square().sum()
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    return torch.stack(squares).sum().sqrt()


def _sharding_groups(owner: Tensor) -> tuple[dist.ProcessGroup, ...]:
    spec = placement_spec(owner)
    return tuple(spec.mesh.get_group(d) for d, placement in enumerate(spec.placements) if not placement.is_replicate())
