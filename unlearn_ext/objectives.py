"""f1, what must be forgotten, and f2, what must be kept, with their targets computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .models import I2IModel, Inputs

CHUNK = 256  # images encoded at once where no gradient is needed: bounds memory
NOISE_IMAGES = 512  # over which the mean noise latent is taken, where one is enough for all images …
NOISE_DRAWS = 8  # … and where every image needs its own, over so many for each


@dataclass(frozen=True)
class Objectives:
    """The two objectives over one pair of image sets.

    f1 = mean ‖E(T(x_f)) − n̄‖² / s² and f2 = mean ‖E(T(x_r)) − E0(T(x_r))‖² / s², with E0 the frozen encoder, n̄ the mean
    of E0 over images of standard normal noise, and s² the variance of E0(T(x_r)) over the retain set; means are per
    element of the latent, so both are in units of the latents' variance and mean the same for every model. f1 with the
    mean noise latent has the gradient that noise drawn anew each time has in expectation, without its variance.

    Attributes:
        forget: what the model takes for T(x_f), tensors [N, ...] on its device, the images first; see
            :meth:`I2IModel.inputs <unlearn_ext.models.I2IModel.inputs>`.
        retain: likewise for T(x_r), tensors [M, ...].
        noise_latent: n̄, [1, ...], or [N, ...] where the forget images are not all seen alike, as under random masks of
            a model whose latents are the visible patches.
        retain_latents: E0(T(x_r)), [M, ...].
        variance: s², 0-d.
    """

    forget: Inputs
    retain: Inputs
    noise_latent: torch.Tensor
    retain_latents: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def freeze(
        cls,
        model: I2IModel,
        forget: torch.Tensor,
        retain: torch.Tensor,
        task: Callable[[torch.Tensor], torch.Tensor],
        *,
        seed: int = 0,
    ) -> Objectives:
        """Compute the targets from the model as it is now, which becomes E0.

        Args:
            model: whose encoder is the frozen one from here on, for these objectives.
            forget: float [N, C, H, W] in [-1, 1], not yet corrupted.
            retain: float [M, C, H, W] in [-1, 1], not yet corrupted.
            task: T.
            seed: of the noise images.
        """
        forget, retain = (_inputs(model, images, task) for images in (forget, retain))
        retain_latents = encode(model, retain)
        return cls(forget, retain, _noise_latent(model, forget, seed), retain_latents, retain_latents.var())

    def held_out(
        self,
        model: I2IModel,
        forget: torch.Tensor,
        retain: torch.Tensor,
        task: Callable[[torch.Tensor], torch.Tensor],
        *,
        seed: int = 0,
    ) -> Objectives:
        """The same objectives, noise target and unit included, over other images; call it before training begins.

        Args: as for :meth:`freeze`; the seed matters where the noise target depends on the image.
        """
        forget, retain = (_inputs(model, images, task) for images in (forget, retain))
        shared = len(self.noise_latent) == 1 and _seen_alike(forget, self.forget)
        noise = self.noise_latent if shared else _noise_latent(model, forget, seed)
        return Objectives(forget, retain, noise, encode(model, retain), self.variance)

    def f1(self, model: I2IModel, index: torch.Tensor) -> torch.Tensor:
        """Forget objective, 0-d, over the forget images at ``index`` (int64 [B])."""
        noise = self.noise_latent[index] if len(self.noise_latent) > 1 else self.noise_latent
        return (model.encode(*(part[index] for part in self.forget)) - noise).square().mean() / self.variance

    def f2(self, model: I2IModel, index: torch.Tensor) -> torch.Tensor:
        """Retain objective, 0-d, over the retain images at ``index`` (int64 [B])."""
        latents = model.encode(*(part[index] for part in self.retain))
        return (latents - self.retain_latents[index]).square().mean() / self.variance

    def evaluate(self, model: I2IModel) -> tuple[float, float]:
        """(f1, f2) over the whole of both sets, without gradient."""
        return self.evaluate_f1(model), self.evaluate_f2(model)

    def evaluate_f1(self, model: I2IModel) -> float:
        """f1 over the whole forget set, without gradient."""
        return ((encode(model, self.forget) - self.noise_latent).square().mean() / self.variance).item()

    def evaluate_f2(self, model: I2IModel) -> float:
        """f2 over the whole retain set, without gradient."""
        return ((encode(model, self.retain) - self.retain_latents).square().mean() / self.variance).item()


@torch.no_grad()
def encode(model: I2IModel, inputs: Inputs) -> torch.Tensor:
    """Latents of any number of images, in chunks, without gradient."""
    chunks = zip(*(part.split(CHUNK) for part in inputs), strict=True)
    return torch.cat([model.encode(*chunk) for chunk in chunks])


def _inputs(model: I2IModel, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    return tuple(part.to(model.device) for part in model.inputs(images, task))


def _seen_alike(inputs: Inputs, pattern: Inputs) -> bool:
    """Whether what goes with the images, a mask, is for all of them what it is for the pattern's first."""
    return all(bool((part == first[:1]).all()) for part, first in zip(inputs[1:], pattern[1:], strict=True))


def _noise_latent(model: I2IModel, inputs: Inputs, seed: int) -> torch.Tensor:
    """Mean latent of images of noise, seen as those of the inputs are: [1, ...], or [N, ...] if these are not alike."""
    images, *rest = inputs
    generator = torch.Generator().manual_seed(seed)

    def latents(count: int, seen: Iterable[torch.Tensor]) -> torch.Tensor:
        noise = torch.randn(count, *images.shape[1:], generator=generator).to(images.device)
        return encode(model, (noise, *seen))

    if _seen_alike(inputs, inputs):
        alike = (part[:1].expand(NOISE_IMAGES, *part.shape[1:]) for part in rest)
        return latents(NOISE_IMAGES, alike).mean(0, keepdim=True)
    return sum(latents(len(images), rest) for _ in range(NOISE_DRAWS)) / NOISE_DRAWS
