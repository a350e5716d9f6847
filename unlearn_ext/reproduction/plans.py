"""The two plans that the command line offers, sized for two cores."""

from __future__ import annotations

from .effort import Effort
from .plan import Plan
from .studies import Convergence, Crops, Infill, Probe, Readers, Resurfacing

__all__ = ["FULL", "QUICK"]

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
