"""Masked autoencoders in the layout of the original programme, ``facebookresearch/mae`` (He et al., arXiv 2111.06377).

Its models are ``mae_visualize_vit_*.pth``, ``mae_pretrain_vit_*_full.pth`` and the checkpoints of own training runs,
which also contain an ``argparse.Namespace``.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, require
from ..loading import check_complete, encoder_only
from ..mae import MAE
from ..progress_bars import without_bars
from .checkpoint import Checkpoint

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
_STACKS = {"blocks": "vit.encoder.layer", "decoder_blocks": "decoder.decoder_encoder.layer"}
_IN_BLOCKS = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
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
    weights = checkpoint.weights
    if "decoder_pred.weight" not in weights:
        raise encoder_only(checkpoint.path)
    table = _table(checkpoint)
    for name in (*table, *weights):
        if name not in weights or name not in table:
            what = "lacks" if name not in weights else "has an unknown weight,"
            raise UserError(f"{checkpoint.path} {what} {name}: save the whole state dict of the original's model.")
    config = require("transformers", "images").ViTMAEConfig(**_configuration(checkpoint))
    renamed = {theirs: part for name, names in table.items() for theirs, part in _split(weights[name], names).items()}
    return MAE(_module(checkpoint.path, config, renamed))


def write_back(model: MAE, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, with those of the ViT replaced by the model's."""
    trained, in_memory = model.module.state_dict(), _names_in_memory(model.module.config)
    written = dict(checkpoint.weights)
    for name, names in _table(checkpoint).items():
        if names[0].startswith("vit."):
            parts = [trained[in_memory[theirs]].cpu() for theirs in names]
            written[name] = torch.cat(parts).to(written[name].dtype)
    return written


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
    with tempfile.TemporaryDirectory() as folder, without_bars():
        module.save_pretrained(folder)
        saved = require("safetensors.torch", "images").load_file(Path(folder) / "model.safetensors")
    names = list(module.state_dict())
    return {name: names[int(value.flatten()[0])] for name, value in saved.items()}


def _table(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return the names of transformers for each of the original's names, for as many blocks as the checkpoint has."""
    table: dict[str, tuple[str, ...]] = {name: (theirs,) for name, theirs in _OUTSIDE_BLOCKS.items()}
    for stack, theirs in _STACKS.items():
        for number in range(_depth(checkpoint, stack)):
            for part, names in _IN_BLOCKS.items():
                for kind in ("weight", "bias"):
                    in_library = (f"{theirs}.{number}.{name}.{kind}" for name in names)
                    table[f"{stack}.{number}.{part}.{kind}"] = tuple(in_library)
    return table


def _depth(checkpoint: Checkpoint, stack: str) -> int:
    numbers = [re.match(rf"{stack}\.(\d{{1,3}})\.", name) for name in checkpoint.weights]
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _split(weight: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the equal parts of a weight, one for each name."""
    return dict(zip(names, weight.tensor_split(len(names)), strict=True))


def _configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of transformers' configuration.

    Raises:
        UserError: the weights have impossible shapes, or do not show all that must be known.
    """
    shapes = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    path = checkpoint.path
    try:
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        decoder_width, _ = shapes["decoder_embed.weight"]
        side = math.isqrt(shapes["pos_embed"][1] - 1)
        mlp, decoder_mlp = shapes["blocks.0.mlp.fc1.weight"][0], shapes["decoder_blocks.0.mlp.fc1.weight"][0]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} has weights whose shapes are not those of a masked autoencoder.") from error
    return {
        "hidden_size": width,
        "num_hidden_layers": _depth(checkpoint, "blocks"),
        "num_attention_heads": _heads(checkpoint, "num_heads", width, _HEADS),
        "intermediate_size": mlp,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": _depth(checkpoint, "decoder_blocks"),
        "decoder_num_attention_heads": _heads(checkpoint, "decoder_num_heads", decoder_width, _DECODER_HEADS),
        "decoder_intermediate_size": decoder_mlp,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
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
    heads = _setting(checkpoint, name) or known.get(width)
    if type(heads) is int and heads > 0 and width % heads == 0:
        return heads
    raise UserError(
        f"{checkpoint.path} does not say how many attention heads divide its width of {width}: write {name} into a "
        f'YAML file, such as "{name}: 16", and name it with --model-config.'
    )


def _norm_pix_loss(checkpoint: Checkpoint) -> bool:
    """Return whether the decoder predicts patches normalised by their own mean and standard deviation.

    Raises:
        UserError: neither the settings nor the name of the file says it.
    """
    given = _setting(checkpoint, "norm_pix_loss")
    if isinstance(given, bool):
        return given
    for pattern, value in _NORM_PIX_LOSS.items():
        if re.search(pattern, checkpoint.path.stem):
            return value
    raise UserError(
        f"{checkpoint.path} does not say whether it was trained with norm_pix_loss, on which pictures depend: write "
        '"norm_pix_loss: true" or "norm_pix_loss: false" into a YAML file, and name it with --model-config.'
    )


def _module(path: Path, config: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """Return the module of transformers with weights by their names in files of the library.

    Raises:
        UserError: a weight has another shape than the configuration says.
    """
    logging = require("transformers.utils.logging", "images")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print a table of weights with wrong shapes
    try:
        with without_bars("transformers"):
            module, info = require("transformers", "images").ViTMAEForPreTraining.from_pretrained(
                None, config=config, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    for name, saved, asked in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{path} has a weight of shape {list(saved)}, {name} in transformers, which must be {list(asked)} to fit "
            "the others."
        )
    check_complete(path, info)
    return module
