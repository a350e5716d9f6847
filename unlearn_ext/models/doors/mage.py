"""Checkpoints of MAGE's pretraining, as family mage, whose module has the same names.

Source of the layout: the repository LTH14/mage.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...errors import UserError
from ..mage import MAGE
from ..mage_network import MAGEConfig, MAGENetwork
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .key_map import Pair, fill, renamed, written_back
from .sizes import layers, shape

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME = "mage"
FAMILY = "mage"

_WORDS = "token_emb.word_embeddings.weight"
_REMEDY = "give a checkpoint of MAGE's pretraining, with VQ-GAN, encoder and decoder"

# Weights that the checkpoints have, but that MAGE does not use: remains of the masked autoencoder it was made from.
_UNUSED = (
    "patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "mask_token", "decoder_pos_embed",
    "decoder_pred.weight", "decoder_pred.bias", "token_emb.position_ids",
)  # fmt: skip

# Heads of the encoder's attention by its width, in the published models; their decoders have 16.
_HEADS = {768: 12, 1024: 16}
_DECODER_HEADS = 16


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has the layout of MAGE."""
    return _WORDS in checkpoint.weights


def load(checkpoint: Checkpoint) -> MAGE:
    """Return the model. All sizes are those of its weights; only the numbers of heads are not in them.

    Raises:
        UserError: the checkpoint lacks a weight or has another, or its numbers of heads are unknown.
    """
    config = _config(checkpoint)
    with torch.device("meta"):  # nothing is allocated before names and shapes are compared
        module = MAGENetwork(config)
    used = {name: weight for name, weight in checkpoint.weights.items() if name not in _UNUSED}
    fill(module, replace(checkpoint, weights=used), _pairs(module), _REMEDY)
    return MAGE(module)


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the checkpoint's weights with the model's in their place; unused weights stay."""
    return written_back(model.module.state_dict(), checkpoint, _pairs(model.module))


def _pairs(module: torch.nn.Module) -> list[Pair]:
    """Return all weights of a module, which have the same names in a checkpoint."""
    return renamed({name: name for name in module.state_dict()})


def _config(checkpoint: Checkpoint) -> MAGEConfig:
    """Return the sizes of the weights.

    Raises:
        UserError: a weight that gives one is missing or has another number of dimensions, or the sizes do not fit
            together.
    """
    words, width = shape(checkpoint, _WORDS, 2, _REMEDY)
    decoder_width, _ = shape(checkpoint, "decoder_embed.weight", 2, _REMEDY)
    codes, code = shape(checkpoint, "vqgan.quantize.embedding.weight", 2, _REMEDY)
    positions, _ = shape(checkpoint, "token_emb.position_embeddings.weight", 2, _REMEDY)
    first, channels, *_ = shape(checkpoint, "vqgan.encoder.conv_in.weight", 4, _REMEDY)
    levels = range(layers(checkpoint, "vqgan.encoder.down"))
    widths = [shape(checkpoint, f"vqgan.encoder.down.{level}.block.0.conv1.weight", 4, _REMEDY)[0] for level in levels]
    heads, decoder_heads = _heads(checkpoint, width)
    return MAGEConfig(
        image_size=math.isqrt(positions - 1) * 2 ** (len(levels) - 1) if positions > 1 and levels else 0,
        num_channels=channels,
        embed_dim=width,
        depth=layers(checkpoint, "blocks"),
        num_heads=heads,
        mlp_dim=shape(checkpoint, "blocks.0.mlp.fc1.weight", 2, _REMEDY)[0],
        decoder_embed_dim=decoder_width,
        decoder_depth=layers(checkpoint, "decoder_blocks"),
        decoder_num_heads=decoder_heads,
        decoder_mlp_dim=shape(checkpoint, "decoder_blocks.0.mlp.fc1.weight", 2, _REMEDY)[0],
        vocab_size=words,
        codebook_size=codes,
        codebook_dim=code,
        vqgan_widths=(first, *widths),
        vqgan_blocks=layers(checkpoint, "vqgan.encoder.down.0.block"),
    )


def _heads(checkpoint: Checkpoint, width: int) -> tuple[int, int]:
    """Return the numbers of heads of encoder and decoder: those of the configuration, or of the published models.

    Raises:
        UserError: the configuration lacks one, and there is no published model of this width.
    """
    published = {"num_heads": _HEADS[width], "decoder_num_heads": _DECODER_HEADS} if width in _HEADS else {}
    heads = {**published, **checkpoint.config}
    if not {"num_heads", "decoder_num_heads"} <= heads.keys():
        raise UserError(
            f"{checkpoint.path} is a MAGE of width {width}, and its weights do not say how many heads of attention it "
            'has: write them into a file, such as {"num_heads": 6, "decoder_num_heads": 8}, and give it as '
            "--model-config FILE."
        )
    return heads["num_heads"], heads["decoder_num_heads"]
