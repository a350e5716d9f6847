"""The compiled module, if there is one, and information about it."""

import importlib
import platform
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from .._version import __version__

__all__ = ["build_info", "kernels", "missing", "why_not"]


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("unlearn_ext._C"), ""
    except ModuleNotFoundError:
        return None, "the package was installed without them; reinstall it with UNLEARN_EXT_KERNELS=on"
    except ImportError as error:
        return None, f"the compiled module could not be imported ({error}); reinstall with 'pip install .'"


if TYPE_CHECKING:
    import unlearn_ext._C as kernels  # or None

    missing: str
else:
    kernels, missing = _load()


def why_not(device: torch.device) -> str:
    """Return why no kernel supports tensors on ``device``; an empty string if one does."""
    if kernels is None:
        return missing
    if device.type == "cpu":
        return ""
    if device.type != "cuda":
        return f"there are no kernels for {device.type} tensors"
    if torch.version.hip:
        return "there are no kernels for ROCm"
    if not kernels.CUDA_ARCHS:
        return "the module was built without CUDA; reinstall with UNLEARN_EXT_CUDA=on and nvcc on PATH"
    return ""


def build_info() -> dict[str, object]:
    """Return what was built, what this machine has, and why kernels are not used.

    Returns:
        dict with keys ``version``, ``python``, ``torch``, ``threads``, ``cpu_kernels`` (bool), ``cpu_isa``,
        ``max_constraints`` (of a step on kernels; a step with more is computed in plain torch), ``cuda_compiled``
        (bool), ``cuda_archs``, ``cuda_available`` (torch sees a CUDA device) and ``why``: a list of sentences, one for
        each kind of kernel that is not used.
    """
    cuda = torch.cuda.is_available()
    reasons = {"CPU kernels": why_not(torch.device("cpu")), "CUDA kernels": why_not(torch.device("cuda"))}
    if not cuda and not reasons["CUDA kernels"]:
        reasons["CUDA kernels"] = "torch sees no CUDA device here"
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_kernels": kernels is not None,
        "cpu_isa": kernels.cpu_isa() if kernels else "",
        "max_constraints": kernels.MAX_CONSTRAINTS if kernels else 0,
        "cuda_compiled": bool(kernels and kernels.CUDA_ARCHS),
        "cuda_archs": kernels.CUDA_ARCHS if kernels else "",
        "cuda_available": cuda,
        "why": [f"{path} are not used: {reason}." for path, reason in reasons.items() if reason],
    }
