"""VQ-GANs of taming-transformers and of latent-diffusion: a Lightning checkpoint and its .yaml become a `VQModel`.

Source: https://github.com/CompVis/taming-transformers, of Esser et al., arXiv 2012.09841.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import UserError, require
from ..protocol import I2IModel
from ..vqgan import VQGAN
from .checkpoint import Checkpoint
from .key_map import Pair, fill, renamed, written_back

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME = "taming-vqgan"
FAMILY = "vqgan"

# Parts of names in diffusers and in the original. Levels of the decoder are counted from the other end.
_PARTS = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("down_blocks", "down"),
    ("up_blocks", "up"),
    ("resnets", "block"),
    ("attentions", "attn"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)

# The loss and its discriminator, and what other parts of the original use: codes that a transformer renumbers, colours
# of segmentations, and the averages with which a codebook is trained.
_UNUSED = re.compile(r"loss\..*|quantize\.used|colorize|quantize\.embedding\.(cluster_size|embed_avg)")

_SIZES = ("ch", "in_channels", "num_res_blocks", "out_ch", "resolution", "z_channels")
_FIXED = {
    "attn_type": "vanilla", "double_z": False, "give_pre_end": False, "resamp_with_conv": True, "tanh_out": False,
    "use_linear_attn": False,
}  # fmt: skip
_REMEDY = "give the checkpoint and the .yaml of the same model, as the training wrote them"


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether there are a VQ-GAN's encoder, its decoder, and a codebook, also one of a Gumbel quantiser."""
    codebooks = {"quantize.embedding.weight", "quantize.embed.weight"} & checkpoint.weights.keys()
    return bool(codebooks) and {
        "encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight",
        "quant_conv.weight", "post_quant_conv.weight",
    } <= checkpoint.weights.keys()  # fmt: skip


def load(checkpoint: Checkpoint) -> I2IModel:
    """Return the model of a checkpoint and its configuration, which is needed for the layers with attention.

    Raises:
        UserError: there is no configuration, or one of another model; the quantiser is Gumbel's; or a weight is
            missing, left over or of another shape.
    """
    if "quantize.embed.weight" in checkpoint.weights:
        raise UserError(
            f"{checkpoint.path} is a Gumbel VQ-GAN, whose quantiser draws its codes at random from a softmax, also "
            "after training; diffusers.VQModel takes the nearest code: give a VQ-GAN with a codebook of this kind."
        )
    options = _options(checkpoint)
    try:
        with torch.device("meta"):  # no memory is taken for sizes that the file does not have
            module = require("diffusers", "images").VQModel(**options)
    except (ValueError, RuntimeError) as error:
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"no model can be built from the configuration of {checkpoint.path}: {said}") from error
    used = {name: weight for name, weight in checkpoint.weights.items() if not _UNUSED.fullmatch(name)}
    fill(module, replace(checkpoint, weights=used), _pairs(module), _REMEDY)
    return VQGAN(module)


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all weights of the checkpoint, those of E replaced by the model's."""
    trained = {
        name: weight
        for name, weight in model.module.state_dict().items()
        if name.startswith(("encoder.", "quant_conv."))
    }
    return written_back(trained, checkpoint, _pairs(model.module))


def _pairs(module: Any) -> list[Pair]:
    """Return all weights of a ``VQModel``."""
    top = len(module.config.block_out_channels) - 1
    return renamed({name: _original(name, top) for name in module.state_dict()})


def _original(name: str, top: int) -> str:
    name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(top - int(level[0])), name)
    for theirs, original in _PARTS:
        name = re.sub(rf"(?<=\.){re.escape(theirs)}(?=\.)", original, name)
    return name


def _options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the options of ``diffusers.VQModel`` for a configuration.

    Raises:
        UserError: an entry is missing, invalid, or one that ``VQModel`` cannot follow.
    """
    model = _within(checkpoint, "model")
    params = _within(checkpoint, "model", "params")
    described = _within(checkpoint, "model", "params", "ddconfig")
    where = f"the configuration of {checkpoint.path}"
    if "gumbel" in str(model.get("target", "")).lower():
        raise UserError(f"{where} is that of a Gumbel VQ-GAN, but the weights are not: {_REMEDY}.")
    for name, value in described.items():
        if name not in {*_SIZES, *_FIXED, "attn_resolutions", "ch_mult", "dropout"}:
            raise UserError(
                f"{where} has {name} in ddconfig, which this package does not know: remove it if the model was trained "
                "without it."
            )
        if name in _FIXED and value != _FIXED[name]:
            raise UserError(f"{where} has {name}: {value!r}; diffusers.VQModel has only {_FIXED[name]!r}.")
    sizes = {name: _number(described.get(name), name, where) for name in _SIZES}
    codes, code_size = (_number(params.get(name), name, where) for name in ("n_embed", "embed_dim"))
    multiples = _numbers(described.get("ch_mult", [1, 2, 4, 8]), "ch_mult", where)
    if not multiples:
        raise UserError(f"{where} has no levels in ch_mult: {_REMEDY}.")
    attended = _numbers(described.get("attn_resolutions"), "attn_resolutions", where)
    if len(multiples) * sizes["num_res_blocks"] > len(checkpoint.weights):
        raise UserError(f"{where} asks for more layers than {checkpoint.path} has: {_REMEDY}.")
    kinds = ["Attn" if sizes["resolution"] >> level in attended else "" for level in range(len(multiples))]
    return {
        "in_channels": sizes["in_channels"], "out_channels": sizes["out_ch"], "sample_size": sizes["resolution"],
        "block_out_channels": tuple(sizes["ch"] * multiple for multiple in multiples),
        "down_block_types": tuple(f"{kind}DownEncoderBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)),
        "layers_per_block": sizes["num_res_blocks"], "latent_channels": sizes["z_channels"],
        "num_vq_embeddings": codes, "vq_embed_dim": code_size,
    }  # fmt: skip


def _within(checkpoint: Checkpoint, *names: str) -> Mapping[str, Any]:
    """Return a section of the configuration.

    Raises:
        UserError: there is no configuration or no such section.
    """
    if not checkpoint.config:
        raise UserError(
            f"no configuration belongs to {checkpoint.path}: put the .yaml of its training beside it, as "
            f"{checkpoint.path.with_suffix('.yaml').name}, or name it with --model-config."
        )
    section: Any = checkpoint.config
    for name in names:
        section = section.get(name) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        raise UserError(
            f"the configuration of {checkpoint.path} has no section {'.'.join(names)}: give the .yaml of its training."
        )
    return section


def _number(value: Any, name: str, where: str) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{where} has {name}: {value!r}; it must be a whole number of at least 1.")
    return value


def _numbers(values: Any, name: str, where: str) -> list[int]:
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{where} has {name}: {values!r}; it must be a list of whole numbers.")
    return [_number(value, name, where) for value in values]
