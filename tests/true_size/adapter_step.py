"""One step on a U-Net of the size of Stable Diffusion 1.5 for inpainting, with random weights.

    python tests/true_size/adapter_step.py        # E is trained
    python tests/true_size/adapter_step.py 16     # an adapter of rank 16 is trained

Prints the trained parameters, the peak memory of the process, the time of the step and the size of the saved files.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from unlearn_ext.models.adapters import Adapted, copied, to_train
from unlearn_ext.optim import EpsilonGap
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer


class Denoiser:
    """The U-Net at one timestep, with an empty prompt; its images are latents of 64x64, of pictures of 512x512."""

    family, channels, size, device = "latent-diffusion", 4, 64, torch.device("cpu")
    random = True  # as in a denoiser, the frozen encoder runs at every step

    def __init__(self) -> None:
        self.module = UNet2DConditionModel(
            sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8, out_channels=4,
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
        ).requires_grad_(False).eval()  # fmt: skip
        self.module.enable_gradient_checkpointing()
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(True)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        return [*self.module.down_blocks.parameters(), *self.module.mid_block.parameters()]

    def inputs(self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0) -> tuple:
        return (images,)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        unet, prompt = self.module, torch.zeros(len(latents), 77, 768)
        time_embedding = unet.time_embedding(unet.time_proj(torch.full((len(latents),), 500)))
        hidden = unet.conv_in(torch.cat([latents, latents[:, :1], latents], 1)).requires_grad_(torch.is_grad_enabled())
        features = []
        for block in unet.down_blocks:
            text = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
            hidden, skipped = block(hidden_states=hidden, temb=time_embedding, **text)
            features.extend(skipped)
        features.append(unet.mid_block(hidden, time_embedding, encoder_hidden_states=prompt))
        return torch.cat([feature.flatten(1) for feature in features], 1)


def main(rank: int | None) -> None:
    torch.manual_seed(0)
    settings = Settings(batch_size=1, lora=rank)
    original = Denoiser()
    model = to_train(original, rank, seed=0)
    images = torch.rand(2, 4, 64, 64) * 2 - 1
    objectives = Objectives.freeze(model, images[:1], images[1:], CenterCrop(0.5), settings=settings)
    trained = copied(model)  # as in a run, in which the unmodified model stays
    trainer, start = Trainer(trained, objectives, History()), time.monotonic()
    trainer.train(EpsilonGap(0.1, 0.1), 1)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        saved = trained if isinstance(trained, Adapted) else trained.module
        saved.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    count = sum(parameter.numel() for parameter in trained.encoder_parameters())
    print(f"trained {count / 1e6:.1f} M, peak {peak / 1e9:.1f} GB, step {seconds:.0f} s, saved {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
