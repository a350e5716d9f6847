"""The history of a run: the values of every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..optim.control import StepStats

__all__ = ["History"]


@dataclass
class History:
    """f1, f2, ψ, λ and the skipped flag of every step, kept on the device until they are read."""

    epsilons: list[float] = field(default_factory=list)
    _rows: list[torch.Tensor] = field(default_factory=list)

    def append(self, epsilon: float, stats: StepStats, f2: torch.Tensor) -> None:
        """Record a step, without synchronisation."""
        self.epsilons.append(epsilon)
        values = (stats.constraint, f2, stats.psi, stats.lam, stats.skipped)
        self._rows.append(torch.stack([value.to(torch.float64) for value in values]))

    def __len__(self) -> int:
        return len(self.epsilons)

    def since(self, begin: int, end: int | None = None) -> torch.Tensor:
        """Return f1, f2, ψ, λ and the skipped flag of a range of steps, float64 [N, 5]; one synchronisation."""
        rows = self._rows[begin:end]
        return torch.stack(rows).cpu() if rows else torch.empty(0, 5, dtype=torch.float64)

    def extend(self, epsilon: float, rows: torch.Tensor) -> None:
        """Append steps that :meth:`since` returned in an earlier process."""
        self.epsilons.extend([epsilon] * len(rows))
        self._rows.extend(rows)

    def rows(self) -> Iterator[tuple[int, float, float, float, float, float, int]]:
        """Yield (step, epsilon, f1, f2, psi, lam, skipped) of every step; one synchronisation."""
        values = self.since(0).tolist()
        for step, (epsilon, (f1, f2, psi, lam, skipped)) in enumerate(zip(self.epsilons, values, strict=True)):
            yield step, epsilon, f1, f2, psi, lam, int(skipped)
