"""The CUDA kernels on CPU tensors: a second binary, whose kernels tests/emulation/cuda_emulator.h runs on the CPU."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from filelock import FileLock

from unlearn_ext.ops import _kernels, extension, two_phase

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=Path(sys.executable).parent) or shutil.which("cmake")
#: Values of CUDA_EMULATION_ORDER, the order in which blocks, warps and lanes run.
ORDERS = ("forward", "backward", "1", "2", "3")

_can_build = CMAKE and shutil.which("g++") and sys.platform == "linux" and platform.machine() == "x86_64"
needs_compiler = pytest.mark.skipif(not _can_build, reason="cmake and g++ are needed, on x86-64 Linux")


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return its output; fail with its messages."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def build(folder: Path, *options: str, source: Path = ROOT) -> Path:
    """Build the module with emulated kernels in ``folder``, if a source has changed; return the module's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # pytest-xdist: one process builds, the others wait
        if not (folder / "CMakeCache.txt").exists():
            pybind = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
            paths = (f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind}", "-DCMAKE_CXX_COMPILER=g++")
            run(CMAKE, "-S", source, "-B", folder, "-DUNLEARN_EXT_EMULATE=ON", *paths, *options)
        run(CMAKE, "--build", folder, "--parallel", "2")
    return folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


@cache
def module() -> ModuleType:
    """Return the module with emulated kernels: UNLEARN_EXT_EMULATED if that is set, else built in build/emulated-*."""
    folder = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"
    path = os.environ.get("UNLEARN_EXT_EMULATED") or build(folder)
    spec = importlib.util.spec_from_file_location("emulated._C", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@contextmanager
def cuda_kernels() -> Iterator[ModuleType]:
    """Run steps on CPU tensors with :class:`CudaKernels` and the emulated kernels, instead of the CPU kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for user in (extension, _kernels):
            patch.setattr(user, "kernels", module())
        patch.setattr(two_phase, "CpuKernels", _kernels.CudaKernels)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        yield module()


def sanitized_environment() -> dict[str, str]:
    """Return the environment of a Python process that loads a module built with AddressSanitizer."""
    libraries = [run("g++", f"-print-file-name={name}").strip() for name in ("libasan.so", "libstdc++.so")]
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}  # Python leaks by design
