"""The sizes that are timed, and random tensors of these sizes."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """``total`` parameters in ``count`` tensors of nearly equal length; every third length is odd on purpose."""

    total: int
    count: int

    @property
    def label(self) -> str:
        """Name of the size, for example ``26M/100``."""
        for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
            if self.total >= limit:
                return f"{self.total / limit:g}{unit}/{self.count}"
        return f"{self.total}/{self.count}"

    def lengths(self) -> list[int]:
        """Return the lengths of the tensors."""
        even = self.total // self.count // 4 * 4
        return [even + (index % 3 == 0) for index in range(self.count)]


@dataclass
class Problem:
    """Parameters θ, gradients g2 of the objective, and of each constraint; each is a list of 1-d tensors."""

    params: list[Tensor]
    grads: list[Tensor]
    constraint_grads: list[list[Tensor]]

    @classmethod
    def random(cls, size: Size, dtype: torch.dtype, device: str, seed: int = 0, constraints: int = 1) -> "Problem":
        """Return a problem with normally distributed values."""
        generator = torch.Generator(device).manual_seed(seed)

        def draw() -> list[Tensor]:
            return [torch.randn(n, generator=generator, device=device).to(dtype) for n in size.lengths()]

        return cls(draw(), draw(), [draw() for _ in range(constraints)])

    @property
    def constraint_grad(self) -> list[Tensor]:
        """The gradients g1 of the only constraint."""
        (only,) = self.constraint_grads
        return only

    def clone(self) -> "Problem":
        """Return a copy with its own tensors."""
        return copy.deepcopy(self)

    def copies(self) -> list["Problem"]:
        """Return the problem itself and, on a GPU, two copies."""
        return [self, *(self.clone() for _ in range(2 if self.grads[0].is_cuda else 0))]


SIZES = {
    "cpu": [Size(19_200, 300), Size(11_000_000, 900), Size(26_000_000, 100), Size(105_000_000, 100)],
    "cuda": [Size(19_200, 300), Size(10_000_000, 300), Size(100_000_000, 100), Size(100_000_000, 5000)],
}
