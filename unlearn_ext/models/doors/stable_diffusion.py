"""Single files of Stable Diffusion 1: inpainting (9 channels) and InstructPix2Pix (8), as family latent-diffusion.

Source of the layout: the repositories CompVis/latent-diffusion and runwayml/stable-diffusion. The names of the U-Net
and of the VAE are translated by the functions with which diffusers reads such files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..._utils.hub import ask_hub
from ...errors import UserError, require
from ..latent_diffusion import LatentDiffusion
from ..loading import loading
from ..pipelines import KINDS
from ..progress_bars import quiet
from ..protocol import I2IModel
from ..read_pipeline import check_vocabulary
from .checkpoint import Checkpoint

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME = "sd-single-file"
FAMILY = "latent-diffusion"

_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
_EMA = "model_ema."  # a second copy of the U-Net's weights, averaged over training
_FIRST = f"{_UNET}input_blocks.0.0.weight"
_IGNORED = (_EMA, "loss.", f"{_VAE}loss.", f"{_TEXT}embeddings.position_ids")
_LATER = {"conditioner.embedders.": "SDXL", "cond_stage_model.model.": "Stable Diffusion 2"}
_TOKENIZER = "openai/clip-vit-large-patch14"
_REMEDY = "give the complete file of an inpainting model or of InstructPix2Pix, or a folder of its pipeline"

# What the weights do not tell: entries of the configuration of Stable Diffusion 1, unless a YAML file has others.
_USUAL: dict[str, Any] = {
    "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "parameterization": "eps",
    "scale_factor": 0.18215, "image_size": 64, "num_heads": 8,
}  # fmt: skip
_MOST = 100_000  # of any of these numbers; a schedule of 10¹² timesteps would fill the memory
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has a U-Net and a VAE under the names of latent-diffusion."""
    return _FIRST in checkpoint.weights and any(name.startswith(_VAE) for name in checkpoint.weights)


def load(checkpoint: Checkpoint) -> LatentDiffusion:
    """Return the pipeline of a checkpoint.

    The tokenizer is not in the file: it is read from a folder ``tokenizer`` beside it, or from the hub or its cache.

    Raises:
        UserError: the file is of another generation or kind, a weight is missing or left over, an entry of the
            configuration is unknown, or there is no tokenizer.
    """
    diffusers, transformers = require("diffusers", "images"), require("transformers", "images")
    kind = _kind(checkpoint)
    settings = _settings(checkpoint)
    _check_left_over(checkpoint)
    unet_config, vae_config, text_config = _configurations(checkpoint, settings)
    unet = diffusers.UNet2DConditionModel(**unet_config)
    _fill(unet, checkpoint, {new: checkpoint.weights[old] for new, old in _unet_names(checkpoint).items()})
    vae = diffusers.AutoencoderKL(**vae_config)
    convert = require("diffusers.loaders.single_file_utils", "images").convert_ldm_vae_checkpoint
    part = {name: weight for name, weight in checkpoint.weights.items() if name.startswith(_VAE)}
    _fill(vae, checkpoint, convert(part, vae_config))
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_config))
    names = [name for name in checkpoint.weights if name.startswith(_TEXT) and name not in _IGNORED]
    _fill(text, checkpoint, {name.removeprefix(_TEXT): checkpoint.weights[name] for name in names})
    scheduler = diffusers.PNDMScheduler(
        num_train_timesteps=settings["timesteps"], beta_start=settings["linear_start"], beta_end=settings["linear_end"],
        beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True,
        prediction_type=_PREDICTIONS[settings["parameterization"]],
    )  # fmt: skip
    with quiet("diffusers", "transformers"):
        pipeline = getattr(diffusers, kind)(
            vae=vae, text_encoder=text, tokenizer=_tokenizer(checkpoint), unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    return LatentDiffusion(pipeline)


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all weights of a checkpoint, with those of E replaced by the model's; also in the averaged copy."""
    weights, names = dict(checkpoint.weights), _unet_names(checkpoint)
    trained = {id(parameter) for parameter in model.encoder_parameters()}
    for new, parameter in model.module.named_parameters():
        if id(parameter) in trained:
            for old in (names[new], _averaged(names[new])):
                if old in weights:
                    weights[old] = parameter.detach().cpu().to(weights[old].dtype).contiguous()
    return weights


def _kind(checkpoint: Checkpoint) -> str:
    """Return the class of the pipeline.

    Raises:
        UserError: there is none.
    """
    for prefix, generation in _LATER.items():
        if any(name.startswith(prefix) for name in checkpoint.weights):
            raise UserError(
                f"{checkpoint.path} is a file of {generation}, whose configuration is not in the file: convert it with "
                "the from_single_file of its pipeline in diffusers, on a machine with network, and give the folder."
            )
    channels = checkpoint.weights[_FIRST].shape[1]
    for name in ("StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline"):
        if KINDS[name].channels == channels:
            return name
    raise UserError(
        f"the U-Net in {checkpoint.path} takes {channels} channels; it must take 9 for inpainting, or 8 for "
        "InstructPix2Pix, so that it sees the corrupted image. A text-to-image model cannot be used."
    )


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the entries of ``_USUAL``, as the YAML file of the checkpoint gives them, if it has one."""
    params = _entry(_entry(checkpoint.config, "model"), "params")
    given = {**_entry(_entry(params, "unet_config"), "params"), **params}
    settings = {name: given.get(name, usual) for name, usual in _USUAL.items()}
    for name, usual in _USUAL.items():
        value = settings[name]
        is_number = isinstance(value, (int, type(usual))) and not isinstance(value, bool)
        if name != "parameterization" and not (is_number and 0 < value < _MOST):
            raise UserError(f"the configuration of {checkpoint.path} has {name} = {value!r}; usual is {usual!r}.")
    if settings["parameterization"] not in _PREDICTIONS:
        raise UserError(
            f"{checkpoint.path} predicts {settings['parameterization']} according to its configuration; known are "
            f"{', '.join(_PREDICTIONS)}."
        )
    return settings


def _entry(config: Any, name: str) -> Mapping[str, Any]:
    """Return an entry of a configuration that is a mapping; empty if there is none."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _check_left_over(checkpoint: Checkpoint) -> None:
    """Raise ``UserError`` for weights of no part; buffers of the noise schedule have no dot in their names."""
    for name in checkpoint.weights:
        if "." in name and not name.startswith((_UNET, _VAE, _TEXT, *_IGNORED)):
            raise UserError(f"{checkpoint.path} has {name}, which is no weight of Stable Diffusion 1: {_REMEDY}.")


def _configurations(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the configurations of the U-Net, the VAE and the text encoder.

    Raises:
        UserError: a weight from whose shape they are read is missing, or has too few or too many dimensions.
    """
    weights = checkpoint.weights
    try:
        return _unet_config(weights, settings), _vae_config(weights, settings), _text_config(weights)
    except (LookupError, ValueError) as error:
        raise UserError(f"{checkpoint.path} lacks a weight, or it has another shape: {error}; {_REMEDY}.") from error


def _unet_config(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the U-Net, from the shapes of its weights."""
    block = f"{_UNET}input_blocks"
    widths: list[int] = []
    attended: list[bool] = []
    layers, number = [0], 1
    while any(name.startswith(f"{block}.{number}.") for name in weights):
        if f"{block}.{number}.0.op.weight" in weights:
            layers.append(0)
        else:
            layers[-1] += 1
            if layers[-1] == 1:
                widths.append(weights[f"{block}.{number}.0.out_layers.3.weight"].shape[0])
                attended.append(f"{block}.{number}.1.norm.weight" in weights)
        number += 1
    key = f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        "sample_size": settings["image_size"], "in_channels": weights[_FIRST].shape[1], "out_channels": 4,
        "block_out_channels": tuple(widths), "layers_per_block": layers[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attended),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)),
        "cross_attention_dim": weights[key].shape[1], "attention_head_dim": settings["num_heads"],
    }  # fmt: skip


def _vae_config(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the VAE, from the shapes of its weights."""
    down = f"{_VAE}encoder.down"
    widths: list[int] = []
    while f"{down}.{len(widths)}.block.0.conv2.weight" in weights:
        widths.append(weights[f"{down}.{len(widths)}.block.0.conv2.weight"].shape[0])
    layers = sum(f"{down}.0.block.{number}.conv1.weight" in weights for number in range(16))
    return {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": tuple(widths),
        "layers_per_block": layers, "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths), "scaling_factor": settings["scale_factor"],
        "sample_size": settings["image_size"] * 2 ** (len(widths) - 1),
    }  # fmt: skip


def _text_config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the configuration of CLIP's text encoder, from the shapes of its weights; heads have 64 channels."""
    words, width = weights[f"{_TEXT}embeddings.token_embedding.weight"].shape
    layers = {name.split(".")[5] for name in weights if name.startswith(f"{_TEXT}encoder.layers.")}
    return {
        "vocab_size": words, "hidden_size": width, "num_hidden_layers": len(layers),
        "num_attention_heads": max(width // 64, 1), "projection_dim": width,
        "intermediate_size": weights[f"{_TEXT}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "max_position_embeddings": weights[f"{_TEXT}embeddings.position_embedding.weight"].shape[0],
        "bos_token_id": words - 2, "eos_token_id": words - 1,
    }  # fmt: skip


def _unet_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the original name of each of the U-Net's weights.

    The function of diffusers only renames, so it can translate the names themselves.
    """
    layers = _unet_config(checkpoint.weights, _USUAL)["layers_per_block"]
    convert = require("diffusers.loaders.single_file_utils", "images").convert_ldm_unet_checkpoint
    names = {name: name for name in checkpoint.weights if name.startswith(_UNET)}
    return convert(names, {"layers_per_block": layers})


def _averaged(name: str) -> str:
    """Return the name of a weight in the averaged copy."""
    return _EMA + name.removeprefix("model.").replace(".", "")


def _fill(module: torch.nn.Module, checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a module, in float32.

    Raises:
        UserError: a weight is missing, left over, of another shape or not floating-point.
    """
    own = module.state_dict()
    for name, value in own.items():
        if name not in weights:
            raise UserError(f"{checkpoint.path} lacks the weight of {type(module).__name__}.{name}: {_REMEDY}.")
        if not weights[name].is_floating_point():
            raise UserError(
                f"{checkpoint.path} has {type(module).__name__}.{name} as {weights[name].dtype}, not as "
                f"floating-point: {_REMEDY}."
            )
        if weights[name].shape != value.shape:
            raise UserError(
                f"{checkpoint.path} has {type(module).__name__}.{name} with shape {list(weights[name].shape)}, not "
                f"{list(value.shape)}: {_REMEDY}."
            )
    if left := [name for name in weights if name not in own]:
        raise UserError(f"{checkpoint.path} has {left[0]}, which {type(module).__name__} has no place for: {_REMEDY}.")
    module.load_state_dict({name: weight.float() for name, weight in weights.items()})


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """Return CLIP's tokenizer, from the folder beside the file, or from the hub or its cache.

    Raises:
        UserError: there is none.
    """
    tokenizer = require("transformers", "images").CLIPTokenizer
    beside = checkpoint.path.parent / "tokenizer"
    if beside.is_dir():
        check_vocabulary(beside)
        with loading("CLIPTokenizer", beside):
            return tokenizer.from_pretrained(beside)
    cached = require("huggingface_hub", "images").try_to_load_from_cache(_TOKENIZER, "vocab.json")
    if not isinstance(cached, str) and (silence := ask_hub(_TOKENIZER, "model")):
        raise UserError(
            f"the tokenizer is not in {checkpoint.path}, and the Hugging Face hub does not answer ({silence}): put "
            f"vocab.json and merges.txt of {_TOKENIZER} into a folder {beside}."
        )
    with loading("CLIPTokenizer", _TOKENIZER):
        return tokenizer.from_pretrained(_TOKENIZER)
