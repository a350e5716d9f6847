"""MAGE (Li et al., arXiv 2211.09117): masked autoencoders over the tokens of a VQ-GAN."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, require
from ..tasks import Corruption
from .freezing import adopt, unwrapped
from .loading import check_complete, loading
from .mage_network import MAGEConfig, MAGENetwork
from .patches import visible_patches

__all__ = ["MAGE"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class MAGE:
    """A :class:`~unlearn_ext.models.mage_network.MAGENetwork` as an :class:`~unlearn_ext.models.I2IModel`.

    A VQ-GAN turns an image into tokens, one per patch. E is the ViT that reads them; its latents are those of the class
    token and of the visible tokens, all that D gets from it. A patch is visible if the task hides none of its pixels.
    The VQ-GAN sees hidden patches in the mean colour of the others, and the ViT sees the mask token for them, so no
    hidden pixel is seen.
    D is the rest, and frozen: the decoder names the most probable code of every hidden patch at once, and the VQ-GAN
    draws them; visible patches are then pasted in. The embedding of tokens is frozen as well: D has the same words.

    Args:
        module: the network; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.

    Raises:
        UserError: the module is of another class, takes neither one nor three channels, or is not float32.
    """

    family = "mage"
    random = False

    def __init__(self, module: MAGENetwork) -> None:
        module = unwrapped(module)
        if not isinstance(module, MAGENetwork):
            raise UserError(
                f"family mage is unlearn_ext.models.mage_network.MAGENetwork; this model is a {type(module).__name__}."
            )
        self.module = module
        self.channels, self.size = module.config.num_channels, module.config.image_size
        adopt(self)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.module.decoder_pos_embed_learned.device

    def inputs(self, images: torch.Tensor, task: Corruption, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and the indices of their visible patches.

        Args:
            images: float32 [N, C, S, S] in [-1, 1].
            task: the task T; its mask gives the hidden pixels.
            draw: not used.

        Returns:
            The unchanged images, and int64 [N, V], the indices of the visible patches in row-major order, ascending.

        Raises:
            UserError: as for :func:`~unlearn_ext.models.patches.visible_patches`; or the task hides nothing.
        """
        config = self.module.config
        visible = visible_patches(images, task, config.image_size, config.patch_size, self.family)
        if visible.shape[1] == config.side**2:
            raise UserError(
                f"task {task} hides nothing, but family mage only fills in hidden patches: choose another task."
            )
        return images, visible

    def encode(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, 1 + V, embed_dim] of the class token and of the visible patches."""
        hidden = self._hidden(visible)
        latents = self.module.encode(self._tokens(images, hidden), hidden)
        index = torch.cat([visible.new_zeros(len(visible), 1), visible + 1], 1)
        return latents.gather(1, index[..., None].expand(-1, -1, latents.shape[-1]))

    def decode(self, latents: torch.Tensor, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, S, S] of latents, with the visible patches pasted in."""
        hidden, vqgan, side = self._hidden(visible), self.module.vqgan, self.module.config.side
        logits = self.module.decode(latents, visible)
        # The most probable code has no gradient: in backward passes, the expected code is in its place.
        expected = logits.softmax(2) @ vqgan.codebook
        predicted = vqgan.codebook[logits.argmax(2)] + (expected - expected.detach())
        codes = torch.where(hidden[..., None], predicted, vqgan.codebook[self._tokens(images, hidden)])
        drawn = vqgan.images(codes.transpose(1, 2).unflatten(2, (side, side))) * 2 - 1
        return torch.where(self._pixels(hidden), drawn, images)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the ViT without the embedding of tokens."""
        return [*self.module.blocks.parameters(), *self.module.norm.parameters()]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        self.module.checkpointing = True

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save ``config.json`` and the weights as ``model.safetensors``, for :meth:`from_pretrained`."""
        save_file = require("safetensors.torch", "images").save_file
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **asdict(self.module.config)}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {name: weight.contiguous() for name, weight in self.module.state_dict().items()}
        save_file(weights, folder / _WEIGHTS, {"format": "pt"})

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> MAGE:
        """Load a model from a folder that :meth:`save_pretrained` wrote, and convert its weights to float32.

        Raises:
            UserError: the folder does not exist, has a model of another class, or lacks weights; or an extra is
                missing.
        """
        load_file = require("safetensors.torch", "images").load_file
        with loading(cls.__name__, path_or_id):
            config: dict[str, Any] = json.loads((Path(path_or_id) / _CONFIG).read_text(encoding="utf-8"))
            saved = config.pop("_class_name", "another library")
            if saved != cls.__name__:
                raise UserError(f"family mage is {cls.__name__}; {path_or_id} is a checkpoint of {saved}.")
            with torch.device("meta"):
                module = MAGENetwork(MAGEConfig(**config))
            weights = load_file(Path(path_or_id) / _WEIGHTS)
            asked = {name: weight.shape for name, weight in module.state_dict().items()}
            info = {
                "missing_keys": asked.keys() - weights.keys(),
                "unexpected_keys": weights.keys() - asked.keys(),
                "mismatched_keys": [
                    (name, weights[name].shape, shape)
                    for name, shape in asked.items()
                    if name in weights and weights[name].shape != shape
                ],
            }
            check_complete(path_or_id, info)
            module.load_state_dict({name: weights[name].float() for name in asked}, assign=True)
        return cls(module)

    def _hidden(self, visible: torch.Tensor) -> torch.Tensor:
        """Return which patches are hidden, bool [N, P]."""
        shape = (len(visible), self.module.config.side**2)
        return torch.ones(shape, dtype=torch.bool, device=visible.device).scatter(1, visible, False)

    def _pixels(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the pixels of hidden patches, bool [N, 1, S, S]."""
        side, patch = self.module.config.side, self.module.config.patch_size
        return hidden.view(-1, 1, side, 1, side, 1).expand(-1, 1, side, patch, side, patch).reshape(
            -1, 1, self.size, self.size
        )  # fmt: skip

    @torch.no_grad()
    def _tokens(self, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the tokens of images whose hidden patches have the mean colour of the others, int64 [N, P].

        The VQ-GAN was trained on whole images: grey patches change its tokens of visible patches even more. It is
        always run in float32, because in lower precision another code could be the nearest.
        """
        pixels = self._pixels(hidden)
        colour = images.masked_fill(pixels, 0).sum((2, 3), keepdim=True) / (~pixels).sum((2, 3), keepdim=True)
        with torch.autocast(images.device.type, enabled=False):
            return self.module.vqgan.tokens((torch.where(pixels, colour, images) + 1) / 2)
