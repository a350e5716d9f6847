"""The two plans that the command line offers, sized for two cores."""

from __future__ import annotations

from .effort import Effort
from .plan import Plan
from .studies import Convergence, Crops, Infill, Probe, Readers, Resurfacing

__all__ = ["FULL", "QUICK"]

# Run time in seconds of one thread, measured on two busy cores. A gradient pair of all 14 methods together takes 21
# times as long as that of one method on latents, since the four methods that decode pictures take about three times as
# long each (MAE: 15 times, its decoder is cheap; diffusion: 10 times, these four are not defined for it). Every method
# has 4 trial sweeps, evaluated on training images, and one sweep for each of 3 seeds, evaluated on validation images
# too. A sweep has 14 to 18 models and mixtures, 16 on average.
#
# | | per pair | training: 3 + 4 sweeps of 280 pairs | evaluation, training and validation images | evaluation | sum |
# |---|---|---|---|---|---|
# | vqgan | 0.035 | 21 · 0.035 · 1,960 = 1,440 | 0.43, 0.14 | 14 · 16 · (7 · 0.43 + 3 · 0.14) = 770 | 2,210 |
# | autoencoder | 0.035 | the same | the same | the same | 2,210 |
# | mae | 0.022 | 15 · 0.022 · 1,960 = 650 | 0.28, 0.08 | 14 · 16 · (7 · 0.28 + 3 · 0.08) = 490 | 1,140 |
# | diffusion | 0.062 | 10 · 0.062 · 1,960 = 1,220 | 0.68, 0.25 | 10 · 16 · (7 · 0.68 + 3 · 0.25) = 880 | 2,100 |
#
# Sum: 7,660 s, 64 minutes on two cores. In addition: 24 minutes for 12 pretrained models, 8 for 4 retrained ones, and
# about 18 for studies, pictures and costs.
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
# vqgan: 21 · 0.035 · 5 · 160 = 590 s of training, 14 · 16 · (5 · 0.22 + 0.07) = 260 s of evaluation: 7 minutes on two
# cores. In addition: 4 minutes to pretrain two models, and about 2 for studies, pictures and costs.
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
