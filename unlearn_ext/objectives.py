"""f1, what must be forgotten, and f2, what must be kept, with their targets computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .models import I2IModel

CHUNK = 256  # images encoded at once where no gradient is needed: bounds memory
NOISE_IMAGES = 512  # over which the mean noise latent is taken


@dataclass(frozen=True)
class Objectives:
    """The two objectives over one pair of image sets.

    f1 = mean ‖E(T(x_f)) − n̄‖² / s² and f2 = mean ‖E(T(x_r)) − E0(T(x_r))‖² / s², with E0 the frozen encoder, n̄ the mean
    of E0 over images of standard normal noise, and s² the variance of E0(T(x_r)) over the retain set; means are per
    element of the latent, so both are in units of the latents' variance and mean the same for every model. f1 with the
    mean noise latent has the gradient that noise drawn anew each time has in expectation, without its variance.

    Attributes:
        forget: T(x_f), float [N, C, H, W], on the model's device.
        retain: T(x_r), float [M, C, H, W].
        noise_latent: n̄, [1, ...].
        retain_latents: E0(T(x_r)), [M, ...].
        variance: s², 0-d.
    """

    forget: torch.Tensor
    retain: torch.Tensor
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
        forget, retain = (task(images).to(model.device) for images in (forget, retain))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(NOISE_IMAGES, *retain.shape[1:], generator=generator).to(model.device)
        retain_latents = encode(model, retain)
        noise_latent = encode(model, noise).mean(0, keepdim=True)
        return cls(forget, retain, noise_latent, retain_latents, retain_latents.var())

    def held_out(
        self,
        model: I2IModel,
        forget: torch.Tensor,
        retain: torch.Tensor,
        task: Callable[[torch.Tensor], torch.Tensor],
    ) -> Objectives:
        """The same objectives, noise target and unit included, over other images; call it before training begins.

        Args: as for :meth:`freeze`.
        """
        forget, retain = (task(images).to(model.device) for images in (forget, retain))
        return Objectives(forget, retain, self.noise_latent, encode(model, retain), self.variance)

    def f1(self, model: I2IModel, index: torch.Tensor) -> torch.Tensor:
        """Forget objective, 0-d, over the forget images at ``index`` (int64 [B])."""
        return (model.encode(self.forget[index]) - self.noise_latent).square().mean() / self.variance

    def f2(self, model: I2IModel, index: torch.Tensor) -> torch.Tensor:
        """Retain objective, 0-d, over the retain images at ``index`` (int64 [B])."""
        return (model.encode(self.retain[index]) - self.retain_latents[index]).square().mean() / self.variance

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
def encode(model: I2IModel, images: torch.Tensor) -> torch.Tensor:
    """Latents of any number of images, in chunks, without gradient."""
    return torch.cat([model.encode(chunk) for chunk in images.split(CHUNK)])
