"""f1, what must be forgotten, and f2, what must be kept, and the targets that they are distances from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from .._utils import distributed
from ..data.augment import Augment
from ..data.storage import empty
from ..errors import UserError
from ..models import I2IModel
from ..tasks import Corruption
from .batches import Batch, Side
from .encoder import Encoder
from .settings import Settings
from .validation import check_images, check_task

__all__ = ["LIVE_NOISE_DRAWS", "NOISE_DRAWS", "NOISE_IMAGES", "Encode", "Objectives"]

NOISE_IMAGES = 512  # over which the mean noise latent is taken, where one is enough for all images …
NOISE_DRAWS = 8  # … where every image needs its own, over so many for each …
LIVE_NOISE_DRAWS = 2  # … and where these are made anew for each minibatch: the fewest that tell their spread

Encode = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Objectives:
    """The two objectives over one pair of image sets.

    f1 = mean ‖E(T(x_f)) − n̄‖² / s² and f2 = mean ‖E(T(x_r)) − E0(T(x_r))‖² / s², with E0 the frozen encoder, n̄ the mean
    of E0 over images of standard normal noise, and s² the variance of E0(T(x_r)) over the retain set; means are per
    element of the latent, so both are in units of the latents' variance and mean the same for every model. f1 with the
    mean noise latent has the gradient that noise drawn anew each time has in expectation, without its variance.

    Targets are computed once and kept. Where what E is given is not the same each time, under augmentation and for a
    model that is given noise itself, the frozen encoder makes them for each minibatch instead. A noise latent that is
    the mean of few draws is off by their spread, which is taken off f1 again: its expectation is that of the true mean.

    Attributes:
        forget: the images to forget, with n̄ as targets.
        retain: the images to retain, with E0(T(x_r)) as targets.
        frozen: E0.
        spread: what n̄ of few draws adds to f1, 0-d, not yet in units of s²; for targets made anew it is of the
            minibatch, and this is 0.
        variance: s², 0-d.
        settings: that they were made with.
    """

    forget: Side
    retain: Side
    frozen: Encode
    spread: torch.Tensor
    variance: torch.Tensor
    settings: Settings

    @classmethod
    def freeze(
        cls,
        model: I2IModel,
        forget: torch.Tensor,
        retain: torch.Tensor,
        task: Corruption,
        *,
        augment: Augment | None = None,
        settings: Settings | None = None,
    ) -> Objectives:
        """Compute the targets from the model as it is now, which becomes E0.

        Args:
            model: whose encoder is the frozen one from here on, for these objectives.
            forget: uint8 [N, C, H, W], or float in [-1, 1], not yet corrupted.
            retain: uint8 [M, C, H, W], or float in [-1, 1], not yet corrupted.
            task: T.
            augment: of training images.
            settings: ``seed`` of the noise images, ``precision``, ``memory`` for the targets.

        Raises:
            UserError: what is given is no task or no such images; the latents of the retain images are not
                finite, or all the same.
        """
        settings = settings or Settings()
        check_task(task)
        for name, images in (("forget", forget), ("retain", retain)):
            check_images(name, images, model)
        live = augment is not None or model.random
        frozen = Encoder(copy.deepcopy(model) if live else model, settings)
        sides = (Side(images, model, task, settings.seed, augment) for images in (forget, retain))
        forget, spread = _with_noise(frozen, next(sides), settings)
        retain, variance = _with_latents(frozen, next(sides), live, settings)
        if not (variance.isfinite() and variance > 0):
            raise UserError(
                f"the variance of the model's latents of the retain images is {variance.item():g}, so nothing can be "
                "measured in it: see whether weights and images are finite, and the images not all alike."
            )
        return cls(forget, retain, frozen, spread, variance, settings)

    def held_out(self, forget: torch.Tensor, retain: torch.Tensor) -> Objectives:
        """The same objectives, noise target and unit included, over other images; call it before training begins.

        Args: as for :meth:`freeze`.
        """
        for name, images in (("held-out forget", forget), ("held-out retain", retain)):
            check_images(name, images, self.forget.model)
        forget, retain = (
            replace(side, images=images, augment=None, targets=None)
            for side, images in ((self.forget, forget), (self.retain, retain))
        )
        noise, spread = self.forget.targets, self.spread
        if noise is not None and len(noise) == 1 and _seen_alike(forget, self.forget):
            forget = replace(forget, targets=noise)
        else:
            forget, spread = _with_noise(self.frozen, forget, self.settings)
        retain, _ = _with_latents(self.frozen, retain, self.retain.targets is None, self.settings)
        return replace(self, forget=forget, retain=retain, spread=spread)

    def f1(self, encode: Encode, batch: Batch) -> torch.Tensor:
        """Forget objective, 0-d, of an encoder over some of the forget images."""
        target, spread = (batch.target, self.spread) if batch.target is not None else _noise_latents(self.frozen, batch)
        return ((encode(*batch.inputs) - target).square().mean() - spread) / self.variance

    def f2(self, encode: Encode, batch: Batch) -> torch.Tensor:
        """Retain objective, 0-d, of an encoder over some of the retain images."""
        target = _without_gradient(self.frozen, batch) if batch.target is None else batch.target
        return (encode(*batch.inputs) - target).square().mean() / self.variance

    def evaluate(self, encode: Encode) -> tuple[float, float]:
        """(f1, f2) over the whole of both sets, without gradient."""
        return self.evaluate_f1(encode), self.evaluate_f2(encode)

    def evaluate_f1(self, encode: Encode) -> float:
        """f1 over the whole forget set, without gradient."""
        return self._mean(self.f1, encode, self.forget)

    def evaluate_f2(self, encode: Encode) -> float:
        """f2 over the whole retain set, without gradient."""
        return self._mean(self.f2, encode, self.retain)

    @torch.no_grad()
    def _mean(self, objective: Callable[[Encode, Batch], torch.Tensor], encode: Encode, side: Side) -> float:
        """Over all images of a side, of which each process takes a part."""
        batches = side.batches(distributed.part(torch.arange(len(side))), _chunk(self.settings))
        total = sum(objective(encode, batch).item() * len(batch.inputs[0]) for batch in batches)
        return distributed.total(total) / len(side)


def _with_latents(frozen: Encode, side: Side, live: bool, settings: Settings) -> tuple[Side, torch.Tensor]:
    """The retain side with its targets, unless these are made for each minibatch, and their variance."""
    latents = (_without_gradient(frozen, batch) for batch in _all(side, settings))
    if not live:
        targets = _kept(latents, len(side), settings.memory)
        side, latents = replace(side, targets=targets), targets.split(_chunk(settings))
    return side, _variance(latents).to(side.model.device)


def _with_noise(frozen: Encode, side: Side, settings: Settings) -> tuple[Side, torch.Tensor]:
    """The forget side with what its noise targets are, or are made of, and what their spread adds to f1."""
    none = torch.zeros((), device=side.model.device)
    if not side.model.random and _seen_alike(side, side):
        return replace(side, targets=_noise_latent(frozen, side, settings)), none
    if side.model.random or side.augment is not None:
        return replace(side, noises=LIVE_NOISE_DRAWS), none
    spreads = []

    def means() -> Iterator[torch.Tensor]:
        for batch in _all(replace(side, noises=NOISE_DRAWS), settings):
            mean, spread = _noise_latents(frozen, batch)
            spreads.append(spread * len(mean) / len(side))
            yield mean

    return replace(side, targets=_kept(means(), len(side), settings.memory)), sum(spreads)


@torch.no_grad()
def _without_gradient(encode: Encode, batch: Batch) -> torch.Tensor:
    return encode(*batch.inputs)


@torch.no_grad()
def _noise_latents(frozen: Encode, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean latents [B, ...] of noise seen as the batch's images are, and by how much a square distance from it is more
    than that from the mean of infinitely many, 0-d."""
    _, *seen = batch.inputs
    latents = torch.stack([frozen(noise, *seen) for noise in batch.noise])
    mean = latents.mean(0)
    # Not ``latents.var(0)``: over so short a dimension its CPU kernel takes longer than all the encoding.
    return mean, (latents - mean).square().mean() / (len(latents) - 1)


@torch.no_grad()
def _noise_latent(frozen: Encode, side: Side, settings: Settings) -> torch.Tensor:
    """Mean latent [1, ...] of images of noise, all seen as the side's first image is."""
    image, *seen = side.batch(torch.arange(1)).inputs
    generator = torch.Generator().manual_seed(settings.seed)
    total = 0
    for numbers in torch.arange(NOISE_IMAGES).split(_chunk(settings)):
        noise = torch.randn(len(numbers), *image.shape[1:], generator=generator).to(image.device)
        total += frozen(noise, *(part.expand(len(numbers), *part.shape[1:]) for part in seen)).sum(0, keepdim=True)
    return (total / NOISE_IMAGES).cpu()


def _seen_alike(side: Side, pattern: Side) -> bool:
    """Whether what goes with the images, a mask, is for all of them what it is for the pattern's first."""
    _, *first = pattern.batch(torch.arange(1)).inputs
    if not first:
        return True
    others = (batch.inputs[1:] for batch in side.batches(torch.arange(len(side)), 256))
    return all(bool((a == b).all()) for other in others for a, b in zip(other, first, strict=True))


def _all(side: Side, settings: Settings) -> Iterator[Batch]:
    return side.batches(torch.arange(len(side)), _chunk(settings))


def _chunk(settings: Settings) -> int:
    """Images encoded at once where no gradient is needed."""
    return 4 * settings.batch_size


def _kept(latents: Iterable[torch.Tensor], count: int, limit: float) -> torch.Tensor:
    """All latents in one tensor [count, ...] on the CPU, in a file past a limit in GiB."""
    kept, start = None, 0
    for some in latents:
        kept = empty((count, *some.shape[1:]), some.dtype, limit) if kept is None else kept
        kept[start : start + len(some)] = some
        start += len(some)
    return kept


def _variance(latents: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of all elements, 0-d float32, summed in float64."""
    count = total = squares = 0
    for some in latents:
        some = some.double()
        count, total, squares = count + some.numel(), total + some.sum(), squares + some.square().sum()
    return ((squares - total.square() / count) / (count - 1)).float()
