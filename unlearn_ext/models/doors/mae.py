"""Masked autoencoders in the layout of the original program, ``facebookresearch/mae`` (He et al., arXiv 2111.06377).

Its models are ``mae_visualize_vit_*.pth``, ``mae_pretrain_vit_*_full.pth`` and the checkpoints of own training runs,
which also contain an ``argparse.Namespace``.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, require
from ..loading import encoder_only
from ..mae import MAE
from ..progress_bars import without_bars
from .checkpoint import Checkpoint
from .key_map import Pair, fill, written_back
from .sizes import layers, shape

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME, FAMILY = "mae", "mae"

# Names in the original and in files of transformers. N is the number of a block; the library splits `qkv` in three.
_OUTSIDE_BLOCKS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed.weight": "decoder.decoder_embed.weight",
    "decoder_embed.bias": "decoder.decoder_embed.bias",
    "decoder_norm.weight": "decoder.decoder_norm.weight",
    "decoder_norm.bias": "decoder.decoder_norm.bias",
    "decoder_pred.weight": "decoder.decoder_pred.weight",
    "decoder_pred.bias": "decoder.decoder_pred.bias",
}
# Stacks of blocks: their names in both, and the entry of transformers' configuration with their number.
_STACKS = (
    ("blocks", "vit.encoder.layer", "num_hidden_layers"),
    ("decoder_blocks", "decoder.decoder_encoder.layer", "decoder_num_hidden_layers"),
)
_IN_BLOCKS = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
_REMEDY = "save the whole state dict of the original's model"
# Numbers of attention heads of the original's models, by the width; the weights do not show them.
_HEADS = {768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}
# Whether the original's files were trained with norm_pix_loss, by their names.
_NORM_PIX_LOSS = {"^mae_visualize_": False, "^mae_pretrain_.*_full$": True}


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether the weights are those of a ViT as the original names them; MAGE's has tokens besides."""
    names = checkpoint.weights.keys()
    is_vit = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names
    return is_vit and not any(name.startswith("token_emb.") for name in names)


def load(checkpoint: Checkpoint) -> MAE:
    """Return the model of a checkpoint.

    Raises:
        UserError: it has no decoder, a weight is missing, left over or of another shape, or the number of attention
            heads or the kind of loss is not known.
    """
    if "decoder_pred.weight" not in checkpoint.weights:
        raise encoder_only(checkpoint.path)
    transformers = require("transformers", "images")
    config = transformers.ViTMAEConfig(**_configuration(checkpoint))
    try:
        with torch.device("meta"):  # nothing is allocated before names and shapes are compared
            module = transformers.ViTMAEForPreTraining(config)
    except ValueError as error:  # a width that 4 does not divide
        raise UserError(f"no model can be built from the shapes in {checkpoint.path} ({error}): {_REMEDY}.") from error
    fill(module, checkpoint, _pairs(config), _REMEDY)
    return MAE(module)


def write_back(model: MAE, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, with those of the ViT replaced by the model's."""
    trained = {name: weight for name, weight in model.module.state_dict().items() if name.startswith("vit.")}
    return written_back(trained, checkpoint, _pairs(model.module.config))


def _pairs(config: Any) -> list[Pair]:
    """Return all weights of a model."""
    table: dict[str, tuple[str, ...]] = {name: (theirs,) for name, theirs in _OUTSIDE_BLOCKS.items()}
    for stack, theirs, depth in _STACKS:
        for number, kind in itertools.product(range(getattr(config, depth)), ("weight", "bias")):
            for part, names in _IN_BLOCKS.items():
                in_files = tuple(f"{theirs}.{number}.{name}.{kind}" for name in names)
                table[f"{stack}.{number}.{part}.{kind}"] = in_files
    in_memory = _names_in_memory(config)
    return [Pair(name, tuple(in_memory[theirs] for theirs in in_files)) for name, in_files in table.items()]


def _names_in_memory(config: Any) -> dict[str, str]:
    """Return the name in memory of each weight by its name in files, which depends on the release of transformers.

    A model of the same depth, whose weights are their numbers, is saved and read.
    """
    small = copy.deepcopy(config)
    for name in ("hidden_size", "intermediate_size", "decoder_hidden_size", "decoder_intermediate_size"):
        setattr(small, name, 4)
    small.num_attention_heads = small.decoder_num_attention_heads = small.image_size = small.patch_size = 1
    module = require("transformers", "images").ViTMAEForPreTraining(small)
    for number, value in enumerate(module.state_dict().values()):
        value.fill_(number)
    with tempfile.TemporaryDirectory() as folder, without_bars("transformers"):
        module.save_pretrained(folder)
        saved = require("safetensors.torch", "images").load_file(Path(folder) / "model.safetensors")
    names = list(module.state_dict())
    return {name: names[int(value.flatten()[0])] for name, value in saved.items()}


def _configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of transformers' configuration.

    Raises:
        UserError: a weight that gives a size is missing, is empty or has another number of dimensions, or the weights
            do not show all that must be known.
    """
    width, channels, patch, _ = shape(checkpoint, "patch_embed.proj.weight", 4, _REMEDY)
    decoder_width, _ = shape(checkpoint, "decoder_embed.weight", 2, _REMEDY)
    _, positions, _ = shape(checkpoint, "pos_embed", 3, _REMEDY)
    return {
        "hidden_size": width,
        "num_hidden_layers": layers(checkpoint, "blocks"),
        "num_attention_heads": _heads(checkpoint, "num_heads", width, _HEADS),
        "intermediate_size": shape(checkpoint, "blocks.0.mlp.fc1.weight", 2, _REMEDY)[0],
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": layers(checkpoint, "decoder_blocks"),
        "decoder_num_attention_heads": _heads(checkpoint, "decoder_num_heads", decoder_width, _DECODER_HEADS),
        "decoder_intermediate_size": shape(checkpoint, "decoder_blocks.0.mlp.fc1.weight", 2, _REMEDY)[0],
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "norm_pix_loss": _norm_pix_loss(checkpoint),
    }


def _setting(checkpoint: Checkpoint, name: str) -> Any:
    """Return a setting of the configuration file, else of the arguments of the training run; None if in neither."""
    arguments = checkpoint.content.get("args")
    return checkpoint.config.get(name, arguments.get(name) if isinstance(arguments, Mapping) else None)


def _heads(checkpoint: Checkpoint, name: str, width: int, known: Mapping[int, int]) -> int:
    """Return a number of attention heads.

    Raises:
        UserError: it is unknown, or does not divide the width.
    """
    given = _setting(checkpoint, name)
    heads = known.get(width) if given is None else given
    if type(heads) is int and heads > 0 and width % heads == 0:
        return heads
    raise UserError(
        f"{checkpoint.path} does not say how many attention heads divide its width of {width}: write {name} into a "
        f'YAML file, such as "{name}: 16", and name it with --model-config.'
    )


def _norm_pix_loss(checkpoint: Checkpoint) -> bool:
    """Return whether the decoder predicts patches normalised by their own mean and standard deviation.

    Raises:
        UserError: the settings do not say true or false, nor does the name of the file.
    """
    given = _setting(checkpoint, "norm_pix_loss")
    if isinstance(given, bool):
        return given
    of_names = [value for pattern, value in _NORM_PIX_LOSS.items() if re.search(pattern, checkpoint.path.stem)]
    if given is None and of_names:
        return of_names[0]
    raise UserError(
        f"{checkpoint.path} does not say whether it was trained with norm_pix_loss, on which pictures depend: write "
        '"norm_pix_loss: true" or "norm_pix_loss: false" into a YAML file, and name it with --model-config.'
    )
