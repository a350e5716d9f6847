"""The implementations that are timed: our step, and others of the same mathematics in torch, for one constraint.

ψ = α‖g1‖², so λ = max(α − ⟨g1,g2⟩/‖g1‖², 0), and no peer has to compute a control function. Of a contestant, ``step()``
is timed and ``prepare()`` is not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from problems import Problem
from torch import Tensor

import unlearn_ext as ux

ALPHA = 0.5
LR = 1e-3


class Contestant(ABC):
    """An implementation that is timed.

    Attributes:
        steps: number of optimizer steps in one call of ``step()``.
        bytes: bytes that a step reads and writes; 0 if not needed.
    """

    steps = 1
    bytes = 0

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def prepare(self) -> None:
        """Prepare the next step; not timed."""
        return

    @abstractmethod
    def step(self) -> None:
        """Take one step; timed."""


class Ours(Contestant):
    """Our optimizer as a user calls it; the timed step includes reading the gradients from the parameters."""

    def __init__(self, problem: Problem, optimizer: Callable[..., torch.optim.Optimizer], **options) -> None:
        super().__init__(problem)
        self.params = [torch.nn.Parameter(t) for t in problem.params]
        controls = {str(i): ux.GradientNorm(alpha=ALPHA) for i, _ in enumerate(problem.constraint_grads)}
        control = controls if len(controls) > 1 else controls["0"]
        self.optimizer = optimizer(self.params, lr=LR, control=control, fused=True, **options)
        self.f1 = torch.ones((), device=problem.params[0].device)

    def prepare(self) -> None:
        """Hold the gradients of each constraint and set those of the objective."""
        for index, grads in enumerate(self.problem.constraint_grads):
            for param, grad in zip(self.params, grads, strict=True):
                param.grad = grad
            self.optimizer.hold_constraint(self.f1, str(index) if len(self.problem.constraint_grads) > 1 else None)
        for param, grad in zip(self.params, self.problem.grads, strict=True):
            param.grad = grad

    def step(self) -> None:
        """Take one step."""
        self.optimizer.step()


def multiplier(dot: Tensor, sq_constraint: Tensor) -> Tensor:
    """Return λ from ⟨g1,g2⟩ and ‖g1‖²."""
    return (ALPHA - dot / sq_constraint).clamp_min(0)


def add_scaled_(targets: list[Tensor], tensors: list[Tensor], factor: Tensor) -> None:
    """Add factor·tensors to targets in place; ``item()`` is used on the CPU only, as it synchronizes a GPU."""
    if factor.device.type == "cpu":
        torch._foreach_add_(targets, tensors, alpha=factor.item())
    else:
        torch._foreach_add_(targets, torch._foreach_mul(tensors, factor))


class Flattened(Contestant):
    """The textbook version: concatenate, project, split, step."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        g1, g2 = torch.cat(p.constraint_grad), torch.cat(p.grads)
        g = g2 + multiplier(torch.dot(g1, g2), torch.dot(g1, g1)) * g1
        for param, part in zip(p.params, g.split([t.numel() for t in p.params]), strict=True):
            param.sub_(LR * part)


class Loop(Contestant):
    """Tensor by tensor, like most published code."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        dot = sum((g1 * g2).sum() for g1, g2 in zip(p.constraint_grad, p.grads, strict=True))
        lam = multiplier(dot, sum(g1.square().sum() for g1 in p.constraint_grad))
        for param, g2, g1 in zip(p.params, p.grads, p.constraint_grad, strict=True):
            param.sub_(LR * (g2 + lam * g1))


class LoopOfDots(Contestant):
    """Tensor by tensor without temporaries; on a CPU, a tensor of one megabyte stays in cache between operations."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        dot = sum(torch.dot(g1, g2) for g1, g2 in zip(p.constraint_grad, p.grads, strict=True))
        factor = multiplier(dot, sum(torch.dot(g1, g1) for g1 in p.constraint_grad)) * -LR
        for param, g2, g1 in zip(p.params, p.grads, p.constraint_grad, strict=True):
            param.add_(g2, alpha=-LR).addcmul_(g1, factor)


class Foreach(Contestant):
    """torch's multi-tensor kernels."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        torch._foreach_add_(p.params, p.grads, alpha=-LR)
        add_scaled_(p.params, p.constraint_grad, foreach_multiplier(p) * -LR)


def foreach_multiplier(p: Problem) -> Tensor:
    """Return λ, computed by multi-tensor kernels."""
    dot = torch.stack([t.sum() for t in torch._foreach_mul(p.constraint_grad, p.grads)]).sum()
    return multiplier(dot, torch.stack(torch._foreach_norm(p.constraint_grad)).square().sum())


@torch.compile(dynamic=False)
def compiled_loop(params: list[Tensor], grads: list[Tensor], constraint_grads: list[Tensor]) -> None:
    """Take one step of ``Loop``, compiled."""
    dot = torch.stack([(g1 * g2).sum() for g1, g2 in zip(constraint_grads, grads, strict=True)]).sum()
    lam = multiplier(dot, torch.stack([g1.square().sum() for g1 in constraint_grads]).sum())
    for param, g2, g1 in zip(params, grads, constraint_grads, strict=True):
        param.sub_(LR * (g2 + lam * g1))


class Compiled(Contestant):
    """torch.compile of the loop; it fuses the loop into two passes, like our step."""

    def step(self) -> None:
        """Take one step."""
        compiled_loop(self.problem.params, self.problem.grads, self.problem.constraint_grad)


class ForeachProjection(Contestant):
    """The projection alone, g2 ← g, by multi-tensor kernels; also used before torch's fused AdamW below."""

    def step(self) -> None:
        """Project the gradients."""
        p = self.problem
        add_scaled_(p.grads, p.constraint_grad, foreach_multiplier(p))


class FlattenedProjection(Contestant):
    """The projection alone, g2 ← g, on concatenated gradients."""

    def step(self) -> None:
        """Project the gradients."""
        p = self.problem
        g1, g2 = torch.cat(p.constraint_grad), torch.cat(p.grads)
        g = g2 + multiplier(torch.dot(g1, g2), torch.dot(g1, g1)) * g1
        for grad, part in zip(p.grads, g.split([t.numel() for t in p.grads]), strict=True):
            grad.copy_(part)


class OurProjection(Contestant):
    """Our projection through ``ux.ops``, on lists of tensors."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        g1 = torch.cat([t.double() for t in problem.constraint_grad])
        self.psi = ALPHA * torch.dot(g1, g1)

    def step(self) -> None:
        """Project the gradients."""
        torch.ops.unlearn_ext.halfspace_project_(self.problem.grads, self.problem.constraint_grad, self.psi)


class TorchFused(Contestant):
    """torch's fused optimizer without a constraint: the time of a step without forgetting."""

    optimizer_class: type[torch.optim.Optimizer]

    def __init__(self, problem: Problem, **options) -> None:
        super().__init__(problem)
        params = [torch.nn.Parameter(t) for t in problem.params]
        for param, grad in zip(params, problem.grads, strict=True):
            param.grad = grad
        self.optimizer = self.optimizer_class(params, lr=LR, fused=True, **options)

    def step(self) -> None:
        """Take one step."""
        self.optimizer.step()


class TorchSGD(TorchFused):
    """torch's fused SGD."""

    optimizer_class = torch.optim.SGD


class TorchAdamW(TorchFused):
    """torch's fused AdamW."""

    optimizer_class = torch.optim.AdamW

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, capturable=problem.params[0].is_cuda)


class ForeachThenAdamW(TorchAdamW):
    """The foreach projection, then torch's fused AdamW; not the same step as ours, since Adam rescales g."""

    def step(self) -> None:
        """Project the gradients, then take one step."""
        ForeachProjection.step(self)
        super().step()


class Copy(Contestant):
    """One large copy, the reference for bandwidth."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        like = problem.grads[0]
        total = min(sum(t.numel() for t in problem.grads), 100_000_000)
        self.source, self.target = (torch.randn(total, device=like.device).to(like.dtype) for _ in range(2))
        self.bytes = 2 * self.source.nbytes

    def step(self) -> None:
        """Copy once."""
        self.target.copy_(self.source)
