"""The sizes that are timed, and fresh tensors of them."""

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
        for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
            if self.total >= limit:
                return f"{self.total / limit:g}{unit}/{self.count}"
        return f"{self.total}/{self.count}"

    def lengths(self) -> list[int]:
        even = self.total // self.count // 4 * 4
        return [even + (index % 3 == 0) for index in range(self.count)]


@dataclass
class Problem:
    """θ, g2 and g1, a list of 1-d tensors each."""

    params: list[Tensor]
    grads: list[Tensor]
    constraint_grads: list[Tensor]

    @classmethod
    def random(cls, size: Size, dtype: torch.dtype, device: str, seed: int = 0) -> "Problem":
        generator = torch.Generator(device).manual_seed(seed)

        def draw() -> list[Tensor]:
            return [torch.randn(n, generator=generator, device=device).to(dtype) for n in size.lengths()]

        return cls(draw(), draw(), draw())

    def clone(self) -> "Problem":
        return Problem(*([t.clone() for t in tensors] for tensors in vars(self).values()))

    def copies(self) -> list["Problem"]:
        """On a GPU three, to be taken in turn; on the CPU the problem itself."""
        return [self, *(self.clone() for _ in range(2 if self.grads[0].is_cuda else 0))]


SIZES = {
    "cpu": [Size(19_200, 300), Size(11_000_000, 900), Size(26_000_000, 100), Size(105_000_000, 100)],
    "cuda": [Size(19_200, 300), Size(10_000_000, 300), Size(100_000_000, 100), Size(100_000_000, 5000)],
}
