"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): the weights of E stay as they are, and an adapter is trained.

The layers are those of PEFT: a linear or convolutional layer with weight W computes with W + BA, where the factor A has
few rows and B has few columns. Without the adapter, the model is the unmodified one, so training needs no second copy
of the weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._utils.tensor_hash import tensors_sha256
from ..errors import UserError, require
from .loading import loading
from .protocol import I2IModel, Inputs
from .sharding import Sharded

__all__ = ["UNMODIFIED", "Adapted", "copied", "has_adapter", "load_merged", "to_train", "unadapted"]

UNMODIFIED = "unmodified"  # folder of the model that adapters belong to, beside their folders
# Layers compute with W + SCALING·BA, so that the learning rate of a whole encoder suits an adapter as well: otherwise
# Adam's first steps would change the output of a layer less than steps of W. Saved files contain SCALING·B as B.
SCALING = 4  # a power of 2, so that saving and loading give the same bits
_ADAPTER = "default"  # PEFT's name of the only adapter
_RECORD = "adapter_of.json"  # the rank, and a digest of the model that the adapter belongs to
# Names of the file of weights, and the prefix of the names in it.
_PEFT = ("adapter_model.safetensors", "base_model.model.")
_PIPELINE = ("pytorch_lora_weights.safetensors", "unet.")  # what `load_lora_weights` of diffusers' pipelines reads


class Adapted:
    """A model whose E has a low-rank adapter, as an :class:`~unlearn_ext.models.I2IModel`.

    Its weights are those of the given model, not copies. The linear and convolutional layers of E get factors: A is
    random, and B begins at 0. The norms of E are trained whole: they are small, and with a fixed last norm all latents
    of a ViT have the same length, so that they could not reach the mean of noise latents, which is shorter. The U-Net
    of a diffusers pipeline is an exception, because ``load_lora_weights`` reads factors only.

    Args:
        original: the unmodified model; it does not change.
        rank: number of rows of A and of columns of B.
        seed: random seed of A.

    Attributes:
        original: the unmodified model.

    Raises:
        UserError: E has no layers that can be adapted, the model has an adapter already, or PEFT is not installed.
    """

    def __init__(self, original: I2IModel, rank: int, seed: int) -> None:
        if any(hasattr(part, "base_layer") for part in original.module.modules()):
            raise UserError(
                "the model already has an adapter: merge it into the weights first, with PEFT's merge_and_unload, or "
                "with fuse_lora and unload_lora_weights of diffusers."
            )
        self.original = original
        self._digest = tensors_sha256(*original.module.state_dict().values())
        encoder = {id(parameter) for parameter in original.encoder_parameters()}
        named = original.module.named_modules()
        parts = {name: part for name, part in named if id(getattr(part, "weight", None)) in encoder}
        layers = [name for name, part in parts.items() if _takes_factors(part)]
        norm_types = () if self._file is _PIPELINE else (nn.LayerNorm, nn.GroupNorm)
        norms = [name for name, part in parts.items() if isinstance(part, norm_types)]
        self._inner = _sharing(original)
        if layers:
            _add_factors(self.module, layers, rank, seed)
        self._layers: dict[str, Any] = {name: self.module.get_submodule(name) for name in layers}
        self._norms: dict[str, nn.Module] = {name: self.module.get_submodule(name) for name in norms}
        for norm in self._norms.values():
            for name, parameter in list(norm.named_parameters(recurse=False)):
                setattr(norm, name, nn.Parameter(parameter.detach().clone()))
        seen = {id(parameter) for parameter in self._inner.encoder_parameters()}
        if not layers or not all(id(parameter) in seen for parameter in self.encoder_parameters()):
            raise UserError(
                f"this encoder of family {self.family} cannot be adapted: it must contain linear or convolutional "
                "layers, and not be one itself; train it whole, without --lora."
            )

    @property
    def family(self) -> str:
        """Name of the family."""
        return self.original.family

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.original.channels

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for."""
        return self.original.size

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._inner.device

    @property
    def random(self) -> bool:
        """Whether the inputs of E contain random numbers."""
        return self.original.random

    @property
    def module(self) -> nn.Module:
        """All parameters, those of the adapter included."""
        return self._inner.module

    def inputs(self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0) -> Inputs:
        """Return the inputs of E."""
        return self._inner.inputs(images, task, draw)

    def encode(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply E with its adapter: return the latents [N, ...] of the inputs."""
        return self._inner.encode(*inputs, **named)

    def decode(self, latents: torch.Tensor, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply D: return images [N, C, H, W] of latents [N, ...] and their inputs."""
        return self._inner.decode(latents, *inputs, **named)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the adapter: A and B of each layer, then those of the norms."""
        factors = [f[_ADAPTER].weight for layer in self._layers.values() for f in (layer.lora_A, layer.lora_B)]
        return [*factors, *(parameter for norm in self._norms.values() for parameter in norm.parameters())]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        self._inner.enable_gradient_checkpointing()

    @torch.no_grad()
    def mix(self, less: Sequence[torch.Tensor], more: Sequence[torch.Tensor], share: float) -> None:
        """Set the adapter so that every weight is exactly (1 − share) times that of ``less`` and share of ``more``.

        The factors of a sum of two products are concatenated: B₁A₁ + B₂A₂ = [B₁ B₂][A₁; A₂]. So the rank is the sum of
        both, but a product of weight or value 0, such as that of the unmodified model, is left out.

        Args:
            less: values of :meth:`encoder_parameters` of an adapter of the same model, of any rank.
            more: the same of another adapter.
            share: weight of ``more``.
        """
        ends = [(weight, state) for weight, state in ((1 - share, less), (share, more)) if weight]
        count = 2 * len(self._layers)
        ends = [(weight, state) for weight, state in ends if any(b.any() for b in state[1:count:2])] or [(0.0, more)]
        parameters, device = self.encoder_parameters(), self.device  # the libraries search for the device
        for a in range(0, count, 2):
            parameters[a].data = torch.cat([state[a] for _, state in ends]).to(device)
            parameters[a + 1].data = torch.cat([weight * state[a + 1] for weight, state in ends], 1).to(device)
        for parameter, one, other in zip(parameters[count:], less[count:], more[count:], strict=True):
            parameter.copy_(torch.lerp(one, other, share))

    def copy(self) -> Adapted:
        """Return a copy with an adapter of its own; the other weights are shared."""
        trained = {id(parameter) for parameter in self.encoder_parameters()}
        weights = [*self.module.parameters(), *self.module.buffers()]
        memo: dict[int, Any] = {id(weight): weight for weight in weights if id(weight) not in trained}
        memo[id(self.original)] = self.original
        return copy.deepcopy(self, memo)

    @torch.no_grad()
    def merged(self) -> I2IModel:
        """Return a model without adapter that computes the same, up to rounding: its weights are W + BA."""
        plain = copy.deepcopy(self.original)
        for name, layer in self._layers.items():
            weight: Any = plain.module.get_submodule(name).weight
            weight.add_(layer.get_delta_weight(_ADAPTER).to(weight.device))
        for name, norm in self._norms.items():
            plain.module.get_submodule(name).load_state_dict(norm.state_dict())
        return plain

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the adapter as a LoRA file, and which model it belongs to.

        PEFT and transformers read the file; for the U-Net of a pipeline of diffusers, its ``load_lora_weights`` does.
        """
        peft, safetensors = require("peft", "lora"), require("safetensors.torch", "images")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        names, values = self._names(), [value.detach().cpu() for value in self.encoder_parameters()]
        weights = {
            name: (SCALING * value if ".lora_B." in name else value).contiguous()
            for name, value in zip(names, values, strict=True)
        }
        safetensors.save_file(weights, str(place / self._file[0]), metadata={"format": "pt"})
        rank = len(values[0])
        if self._file is _PEFT:
            peft.LoraConfig(
                r=rank, lora_alpha=rank, target_modules=_exactly(self._layers),
                modules_to_save=list(self._norms) or None, inference_mode=True,
            ).save_pretrained(str(place))  # fmt: skip
        record = {"digest": self._digest, "rank": rank}
        (place / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def read(self, folder: str | os.PathLike[str]) -> list[torch.Tensor]:
        """Return the values of an adapter that was saved for the same model, as :meth:`mix` takes them.

        Raises:
            UserError: there is no adapter in the folder, it is that of another model, or it is damaged.
        """
        if not has_adapter(folder):
            raise UserError(f"the model in {folder} was trained whole, without an adapter: leave out --lora.")
        with loading("adapter", folder):
            record = json.loads((Path(folder) / _RECORD).read_text(encoding="utf-8"))
            digest, rank = record["digest"], record["rank"]
            saved = require("safetensors.torch", "images").load_file(str(Path(folder) / self._file[0]))
        if digest != self._digest:
            raise UserError(
                f"the adapter in {folder} belongs to another model than this one: give the model that it was trained "
                f"for, which its run has saved as {Path(folder).parent / UNMODIFIED}."
            )
        names = self._names()
        wanted = {
            name: _with_rank(rank, name, mine.shape)
            for name, mine in zip(names, self.encoder_parameters(), strict=True)
        }
        there = {name: list(value.shape) for name, value in saved.items()}
        for name in sorted(wanted.keys() | there.keys()):
            if wanted.get(name) != there.get(name):
                raise UserError(
                    f"the adapter in {folder} is damaged: the shape of {name} is {there.get(name)}, not "
                    f"{wanted.get(name)}; run the command again."
                )
        return [saved[name] / SCALING if ".lora_B." in name else saved[name] for name in names]

    @property
    def _file(self) -> tuple[str, str]:
        """Name of the file of weights, and prefix of the names in it."""
        return _PIPELINE if type(self.original.module).__name__ == "UNet2DConditionModel" else _PEFT

    def _names(self) -> list[str]:
        """Return the names of the parameters in the file, in the order of :meth:`encoder_parameters`."""
        factors = [f"{name}.{factor}.weight" for name in self._layers for factor in ("lora_A", "lora_B")]
        norms = [f"{name}.{part}" for name, norm in self._norms.items() for part, _ in norm.named_parameters()]
        return [self._file[1] + name for name in (*factors, *norms)]


def copied(model: I2IModel) -> I2IModel:
    """Return a copy of a model to train or to mix; of an adapted model, only the adapter is copied."""
    return model.copy() if isinstance(model, Adapted) else copy.deepcopy(model)


def unadapted(model: I2IModel) -> I2IModel:
    """Return a model without its adapter, if it has one; the weights are shared."""
    return model.original if isinstance(model, Adapted) else model


def to_train(model: I2IModel, rank: int | None, seed: int) -> I2IModel:
    """Return a model with a new adapter of a rank; if the rank is None, the model itself.

    Raises:
        UserError: the model is divided among processes; or as for :class:`Adapted`.
    """
    if rank is None:
        return model
    if isinstance(model, Sharded):
        raise UserError("a model that is divided among processes cannot get an adapter: leave out lora or fsdp.")
    return Adapted(model, rank, seed)


def has_adapter(folder: str | os.PathLike[str]) -> bool:
    """Return whether :meth:`Adapted.save_pretrained` wrote a folder."""
    return os.path.isfile(os.path.join(folder, _RECORD))  # False for invalid paths, such as a very long hub id


def load_merged(folder: str | os.PathLike[str], load: Callable[[Path], I2IModel]) -> I2IModel:
    """Return the model of an adapter, with the adapter in its weights.

    Args:
        folder: folder that :meth:`Adapted.save_pretrained` wrote; the model that it belongs to is beside it.
        load: function that loads that model from its folder.

    Raises:
        UserError: the model is not there or is another one, or the adapter is damaged.
    """
    original = Path(folder).parent / UNMODIFIED
    if not original.is_dir():
        raise UserError(
            f"{folder} contains an adapter, but the model that it belongs to is not in {original}: put that model's "
            "folder there."
        )
    adapted = Adapted(load(original), rank=1, seed=0)
    state = adapted.read(folder)
    adapted.mix(state, state, 1.0)
    return adapted.merged()


def _sharing(model: I2IModel) -> Any:
    """Return a copy of a model whose parameters are frozen and have the same memory as the model's."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.module.buffers()}
    for parameter in model.module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, memo)


def _takes_factors(part: nn.Module) -> bool:
    """Return whether a module is a linear or convolutional layer.

    Subclasses may be used without being called, as in torch's attention. Grouped convolutions need grouped factors.
    """
    return type(part) is nn.Linear or (type(part) is nn.Conv2d and part.groups == 1)


def _with_rank(rank: int, name: str, shape: Sequence[int]) -> list[int]:
    """Return the shape of a parameter of an adapter for another rank: rows of A, columns of B."""
    rank_axis = next((axis for axis, factor in enumerate(("lora_A", "lora_B")) if f".{factor}." in name), None)
    return [rank if axis == rank_axis else side for axis, side in enumerate(shape)]


def _add_factors(module: nn.Module, layers: Sequence[str], rank: int, seed: int) -> None:
    """Replace layers of a module in place by PEFT's, with random A and with B = 0; freeze everything else.

    Args:
        module: the module.
        layers: names of the layers.
        rank: rank of the factors.
        seed: random seed of A.

    Raises:
        UserError: PEFT is not installed.
    """
    peft = require("peft", "lora")
    config = peft.LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=_exactly(layers))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers has renamed
        peft.inject_adapter_in_model(config, module, _ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for name in layers:
        a: torch.Tensor = module.get_submodule(name).lora_A[_ADAPTER].weight  # type: ignore[index, union-attr]
        a.data.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=generator))


def _exactly(names: Sequence[str] | dict[str, Any]) -> str:
    """Return a regular expression for modules of these names; PEFT takes names in a list for ends of names."""
    return "|".join(map(re.escape, names))
