"""What the experiment is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .._utils.atomic_io import write_text
from ..demo import CHOICES, DATASET, FORGET_CLASSES, TASK
from ..errors import UserError
from ..unlearning.outputs import refuse_foreign, refuse_other_commands
from ..unlearning.phases import ANCHORS
from ..unlearning.settings import Settings
from .studies import Convergence, Crops, Infill, Probe, Readers, Resurfacing, Study

FILE = "reproduction.json"


@dataclass(frozen=True)
class Effort:
    """What is spent on one family.

    Attributes:
        batch_size: images in each minibatch, of forget and of retain images alike.
        pairs: of gradients in each sweep, those of the search included: what is best for short sweeps is not best for
            long ones. Divisible by the number of our anchors and by that of the weights of a ladder, so that every
            method takes all of them.
        share: of the images of each set that is unlearned on and validated with; pretraining sees all of them.
    """

    batch_size: int
    pairs: int
    share: float

    def settings(self, family: str, seed: int) -> Settings:
        """Return the settings that a family's search starts from, with the steps of an anchor of ours."""
        steps = self.pairs // len(ANCHORS)
        return replace(CHOICES[family].settings, batch_size=self.batch_size, steps=steps, seed=seed)


@dataclass(frozen=True)
class Plan:
    """How thorough it is.

    Attributes:
        seeds: how many, from 0; more may be asked for later.
        points: ε between the boundaries, which our front has beside its anchors. They are for the studies and the
            page, and do not enter the comparison.
        efforts: by family.
        studies: questions beside it, of the first seed of each family.
    """

    seeds: int
    points: int
    efforts: Mapping[str, Effort]
    studies: tuple[Study, ...] = ()

    def check(self, out: Path, device: torch.device) -> None:
        """Check that the experiment may write to a folder, before anything is written.

        Args:
            out: the folder.
            device: what the tables are made on; its kind decides their last digits.

        Raises:
            UserError: the tables there are of another plan, or the folder holds files that no experiment wrote, or what
                another command wrote.
        """
        refuse_other_commands(out, "reproduce")
        if not (out / FILE).exists():
            refuse_foreign(out, [out / name for name in self._names if (out / name).exists()])
            return
        theirs, mine = kept(out), json.loads(self._text(device))
        if differing := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            raise UserError(
                f"{out} holds an experiment with other settings, it differs in: {', '.join(differing)}; see {FILE} "
                "there, and choose another folder."
            )

    def keep(self, out: Path, device: torch.device) -> None:
        """Write it beside the tables; the arguments and errors are those of :meth:`check`."""
        self.check(out, device)
        if not (out / FILE).exists():
            write_text(out / FILE, self._text(device))

    def _text(self, device: torch.device) -> str:
        mine = {"dataset": DATASET, "forget_classes": list(FORGET_CLASSES), "task": str(TASK)}
        mine |= {"points": self.points, "device": device.type}
        mine |= {"efforts": {family: asdict(effort) for family, effort in self.efforts.items()}}
        mine |= {"settings": {family: asdict(effort.settings(family, 0)) for family, effort in self.efforts.items()}}
        mine |= {"studies": {study.name: asdict(study) for study in self.studies}}
        return f"{json.dumps(mine, indent=2)}\n"

    @property
    def _names(self) -> list[str]:
        """Names of what an experiment writes into its folder, but for the folders of its fronts, which sweeps check."""
        tables = ("reproduction", "search", "costs", "quality", *(study.name for study in self.studies))
        return [*(f"{name}.csv" for name in tables), "reproduction.html", "figures"]


def kept(out: Path) -> dict[str, Any]:
    """What :meth:`Plan.keep` wrote.

    Raises:
        UserError: nothing was kept there.
    """
    try:
        plan = json.loads((out / FILE).read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it holds no names with values")
        return plan
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no experiment: its {FILE} cannot be read: {error}.") from error


# What a run takes, in seconds of one thread; measured on two cores that were in use. All 14 methods together take 21
# times as long for a pair as one method in latents, since the four that look at pictures take about three times as long
# (10 times with diffusion, for which these are not defined; MAE's decoder is cheap: 15 times). Every method has 4 trial
# sweeps, judged on training images, and a sweep for each of 3 seeds, judged on validation images too; a sweep has 14 to
# 18 models and mixtures, 16 on average.
#
# | | a pair | training: 3 + 4 sweeps of 280 pairs | judging, training and validation | judging | sum |
# |---|---|---|---|---|---|
# | vqgan | 0.035 | 21 · 0.035 · 1,960 = 1,440 | 0.43, 0.14 | 14 · 16 · (7 · 0.43 + 3 · 0.14) = 770 | 2,210 |
# | autoencoder | 0.035 | the same | the same | the same | 2,210 |
# | mae | 0.022 | 15 · 0.022 · 1,960 = 650 | 0.28, 0.08 | 14 · 16 · (7 · 0.28 + 3 · 0.08) = 490 | 1,140 |
# | diffusion | 0.062 | 10 · 0.062 · 1,960 = 1,220 | 0.68, 0.25 | 10 · 16 · (7 · 0.68 + 3 · 0.25) = 880 | 2,100 |
#
# Together 7,660 s, 64 minutes on two cores. 12 pretrained models take 24 minutes, 4 retrained ones 8; studies, pictures
# and costs about 18.
FULL = Plan(
    seeds=3,
    points=2,
    efforts={
        "vqgan": Effort(batch_size=8, pairs=280, share=1 / 5),
        "autoencoder": Effort(batch_size=8, pairs=280, share=1 / 5),
        "mae": Effort(batch_size=8, pairs=280, share=1 / 5),
        "diffusion": Effort(batch_size=8, pairs=280, share=1 / 8),
    },
    studies=(
        Convergence(deltas=(0.5, 1.0, 1.5, 2.0, 3.0), runs=1),
        Resurfacing(steps=(0, 10, 20, 40)),
        Probe(),
        Readers(),
        Crops(fractions=(0.25, 0.5, 0.75), points=2),
        Infill(shares=(0.5, 0.1)),
    ),
)
# vqgan: 21 · 0.035 · 5 · 160 = 590 s of training, 14 · 16 · (5 · 0.22 + 0.07) = 260 s of judging: 7 minutes on two
# cores; two models are pretrained in 4 minutes; studies, pictures and costs take about 2.
QUICK = Plan(
    seeds=1,
    points=2,
    efforts={
        family: Effort(batch_size=8, pairs=160, share=share)
        for family, share in {"vqgan": 1 / 10, "autoencoder": 1 / 10, "mae": 1 / 10, "diffusion": 1 / 16}.items()
    },
    studies=(
        Convergence(deltas=(0.5, 1.0, 2.0), runs=1),
        Resurfacing(steps=(0, 10, 20)),
        Probe(),
        Readers(),
    ),
)
