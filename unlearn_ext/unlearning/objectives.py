"""The objectives f1 (what is left of the forgotten) and f2 (damage to the retained), and their target latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from .._utils import distributed
from ..data.augment import Augment
from ..data.storage import empty
from ..errors import UserError
from ..models import I2IModel
from ..models.adapters import copied, unadapted
from ..tasks import Corruption
from .batches import Batch, Side
from .encoder import Encoder
from .settings import Settings
from .validation import check_images, check_task

__all__ = ["LIVE_NOISE_DRAWS", "NOISE_DRAWS", "NOISE_IMAGES", "Encode", "Objectives"]

NOISE_IMAGES = 512  # noise images per mean noise latent, if all images share one
NOISE_DRAWS = 8  # noise images per mean noise latent, if every image needs its own
LIVE_NOISE_DRAWS = 2  # the same, if computed for each minibatch: the fewest that have a variance

Encode = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Objectives:
    """The two objectives for one pair of image sets.

    f1 = mean ‖E(T(x_f)) − n̄‖² / s² and f2 = mean ‖E(T(x_r)) − E0(T(x_r))‖² / s². E0 is the frozen encoder, n̄ is the
    mean of E0 over images of standard normal noise, and s² is the variance of E0(T(x_r)) over the retain set. Means are
    taken over latent elements, so both objectives are in units of the latents' variance and comparable between models.
    With the mean noise latent, ∇f1 has the same expectation as with new noise at every step, but less variance.

    Targets are computed once and cached. If the encoder's inputs change from step to step (with augmentation, or if the
    model takes random inputs), the frozen encoder computes the targets for each minibatch instead. The mean of few
    noise latents deviates from n̄, which increases f1. This increase, the spread, is subtracted, so f1 has the same
    expectation as with n̄.

    Attributes:
        forget: the images to forget, with n̄ as targets.
        retain: the images to retain, with E0(T(x_r)) as targets.
        frozen: the frozen encoder E0.
        spread: increase of f1 due to a mean of few noise latents, 0-d, before division by s²; 0 if targets are
            computed for each minibatch, which then has its own spread.
        variance: s², 0-d.
        settings: the settings used to compute the targets.
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
        variance: float | None = None,
    ) -> Objectives:
        """Return objectives whose frozen encoder E0 is the model's current encoder, and compute their targets.

        Args:
            model: the model; its current encoder becomes E0.
            forget: images to forget, uint8 [N, C, H, W], or float in [-1, 1], not corrupted.
            retain: images to retain, uint8 [M, C, H, W], or float in [-1, 1], not corrupted.
            task: the task T.
            augment: augmentation of training images.
            settings: ``seed`` of the noise images, ``precision``, and ``memory`` for the targets are used.
            variance: s² of an earlier run on the same E0, so that both have the same units even if the retain set has
                changed; by default that of the retain images.

        Raises:
            UserError: the task or the images are invalid, or the latents of the retain images are not finite or all
                equal.
        """
        settings = settings or Settings()
        check_task(task)
        for name, images in (("forget", forget), ("retain", retain)):
            check_images(name, images, model)
        live = augment is not None or model.random
        still = unadapted(model)  # training an adapter does not change it
        frozen = Encoder(copied(model) if live and still is model else still, settings)
        sides = (Side(images, model, task, settings.seed, augment) for images in (forget, retain))
        forget_side, spread = _with_noise(frozen, next(sides), settings)
        retain_side, unit = _with_latents(frozen, next(sides), live, settings)
        if variance is not None:
            unit = torch.full_like(unit, variance)
        if not (unit.isfinite() and unit > 0):
            raise UserError(
                f"the variance of the model's latents of the retain images is {unit.item():g}, so f1 and f2 cannot "
                "be computed: check that weights and images are finite, and that the images are not all alike."
            )
        return cls(forget_side, retain_side, frozen, spread, unit, settings)

    def toward(self, forget: torch.Tensor) -> Objectives:
        """Return the same objectives, with the same E0, n̄, s² and retain images, for other images to forget.

        Args:
            forget: images to forget, as for :meth:`freeze`.

        Raises:
            UserError: the images are invalid.
        """
        check_images("forget", forget, self.forget.model)
        side, spread = self._like(replace(self.forget, images=forget, targets=None))
        return replace(self, forget=side, spread=spread)

    def held_out(self, forget: torch.Tensor, retain: torch.Tensor | None) -> Objectives:
        """Return the same objectives, with the same n̄ and s², over other images, without augmentation.

        Call it before training begins: the frozen encoder may be the model's own.

        Args:
            forget: held-out images to forget, as for :meth:`freeze`.
            retain: held-out images to retain, as for :meth:`freeze`; None to keep the training images.

        Raises:
            UserError: the images are invalid.
        """
        check_images("held-out forget", forget, self.forget.model)
        side, spread = self._like(replace(self.forget, images=forget, augment=None, targets=None))
        if retain is None:
            return replace(self, forget=side, spread=spread)
        check_images("held-out retain", retain, self.forget.model)
        retain_side = replace(self.retain, images=retain, augment=None, targets=None)
        retain_side, _ = _with_latents(self.frozen, retain_side, self.retain.targets is None, self.settings)
        return replace(self, forget=side, retain=retain_side, spread=spread)

    def f1(self, encode: Encode, batch: Batch) -> torch.Tensor:
        """Return f1 of an encoder over a minibatch of forget images, 0-d."""
        target, spread = self._toward_noise(batch)
        return ((encode(*batch.inputs) - target).square().mean() - spread) / self.variance

    def f2(self, encode: Encode, batch: Batch) -> torch.Tensor:
        """Return f2 of an encoder over a minibatch of retain images, 0-d."""
        target = _without_gradient(self.frozen, batch) if batch.target is None else batch.target
        return (encode(*batch.inputs) - target).square().mean() / self.variance

    def evaluate(self, encode: Encode) -> tuple[float, float]:
        """Return (f1, f2) over both whole sets, without gradient."""
        return self.evaluate_f1(encode), self.evaluate_f2(encode)

    def evaluate_f1(self, encode: Encode) -> float:
        """Return f1 over the whole forget set, without gradient."""
        return self._mean(self.f1, encode, self.forget)

    def evaluate_f2(self, encode: Encode) -> float:
        """Return f2 over the whole retain set, without gradient."""
        return self._mean(self.f2, encode, self.retain)

    @torch.no_grad()
    def per_image(self, encode: Encode) -> torch.Tensor:
        """Return f1 of each forget image, float64 [N] on the CPU; their mean is f1 over the whole set."""
        values = []
        for batch in _all(self.forget, self.settings):
            target, spread = self._toward_noise(batch)
            errors = (encode(*batch.inputs) - target).square().flatten(1).mean(1)
            values.append(((errors - spread) / self.variance).cpu())
        return torch.cat(values).double()

    def _toward_noise(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the noise targets of a minibatch, and their spread."""
        return (batch.target, self.spread) if batch.target is not None else _noise_latents(self.frozen, batch)

    def _like(self, side: Side) -> tuple[Side, torch.Tensor]:
        """Return another forget side with the same noise targets if its masks are the same, and the spread."""
        noise = self.forget.targets
        if noise is not None and len(noise) == 1 and _seen_alike(side, self.forget):
            return replace(side, targets=noise), self.spread
        return _with_noise(self.frozen, side, self.settings)

    @torch.no_grad()
    def _mean(self, objective: Callable[[Encode, Batch], torch.Tensor], encode: Encode, side: Side) -> float:
        """Return the mean over all images of a side; each process computes a part."""
        mine, total, most = distributed.part(torch.arange(len(side))), 0.0, _chunk(self.settings)
        for batch in side.batches(mine, most):
            total += objective(encode, batch).item() * len(batch.inputs[0])
        if len(mine) % most == 0 and distributed.largest_part(len(side)) > len(mine):
            objective(encode, side.batch(torch.arange(1)))  # others have one minibatch more, and encode it together
        return distributed.total(total) / len(side)


def _with_latents(frozen: Encode, side: Side, live: bool, settings: Settings) -> tuple[Side, torch.Tensor]:
    """Return the retain side and the variance of its latents; cache these as targets unless ``live``."""
    latents = (_without_gradient(frozen, batch) for batch in _all(side, settings))
    if not live:
        targets = _kept(latents, len(side), settings.memory)
        side, latents = replace(side, targets=targets), targets.split(_chunk(settings))
    return side, _variance(latents).to(side.model.device)


def _with_noise(frozen: Encode, side: Side, settings: Settings) -> tuple[Side, torch.Tensor]:
    """Return the forget side with its noise targets, or the number of noise images to compute them, and the spread."""
    none = torch.zeros((), device=side.model.device)
    if not side.model.random and _seen_alike(side, side):
        return replace(side, targets=_noise_latent(frozen, side, settings)), none
    if side.model.random or side.augment is not None:
        return replace(side, noises=LIVE_NOISE_DRAWS), none
    spreads: list[torch.Tensor] = []

    def means() -> Iterator[torch.Tensor]:
        for batch in _all(replace(side, noises=NOISE_DRAWS), settings):
            mean, spread = _noise_latents(frozen, batch)
            spreads.append(spread * len(mean) / len(side))
            yield mean

    return replace(side, targets=_kept(means(), len(side), settings.memory)), sum(spreads, none)


@torch.no_grad()
def _without_gradient(encode: Encode, batch: Batch) -> torch.Tensor:
    return encode(*batch.inputs)


@torch.no_grad()
def _noise_latents(frozen: Encode, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean noise latents [B, ...] under the batch's own masks, and their spread, 0-d.

    The spread is the expected squared deviation, per element, of this mean from the mean of infinitely many latents.
    """
    _, *seen = batch.inputs
    latents = torch.stack([frozen(noise, *seen) for noise in batch.noise])
    mean = latents.mean(0)
    # Not ``latents.var(0)``: over this short dimension, its CPU kernel takes longer than the encoding.
    return mean, (latents - mean).square().mean() / (len(latents) - 1)


@torch.no_grad()
def _noise_latent(frozen: Encode, side: Side, settings: Settings) -> torch.Tensor:
    """Return the mean noise latent [1, ...], under the mask of the side's first image."""
    image, *seen = side.batch(torch.arange(1)).inputs
    generator = torch.Generator().manual_seed(settings.seed)
    total = torch.zeros((), device=image.device)
    for numbers in torch.arange(NOISE_IMAGES).split(_chunk(settings)):
        noise = torch.randn(len(numbers), *image.shape[1:], generator=generator).to(image.device)
        masks = (part.expand(len(numbers), *part.shape[1:]) for part in seen)
        total = total + frozen(noise, *masks).sum(0, keepdim=True)
    return (total / NOISE_IMAGES).cpu()


def _seen_alike(side: Side, pattern: Side) -> bool:
    """Return whether all images of a side have the same mask (inputs after the first) as the pattern's first image."""
    _, *first = pattern.batch(torch.arange(1)).inputs
    if not first:
        return True
    others = (batch.inputs[1:] for batch in side.batches(torch.arange(len(side)), 256))
    return all(bool((a == b).all()) for other in others for a, b in zip(other, first, strict=True))


def _all(side: Side, settings: Settings) -> Iterator[Batch]:
    return side.batches(torch.arange(len(side)), _chunk(settings))


def _chunk(settings: Settings) -> int:
    """Return the number of images to encode at once without gradient."""
    return 4 * settings.batch_size


def _kept(latents: Iterable[torch.Tensor], count: int, limit: float) -> torch.Tensor:
    """Return all latents in one tensor [count, ...] on the CPU, stored in a file above the limit in GiB."""
    kept: torch.Tensor | None = None
    start = 0
    for some in latents:
        kept = empty((count, *some.shape[1:]), some.dtype, limit) if kept is None else kept
        kept[start : start + len(some)] = some
        start += len(some)
    assert kept is not None  # a side has at least one image
    return kept


def _variance(latents: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the variance over all elements, 0-d float32, summed in float64."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for some in latents:
        some = some.double()
        count, total, squares = count + some.numel(), total + some.sum(), squares + some.square().sum()
    return ((squares - total.square() / count) / (count - 1)).float()
