"""Build the extension unlearn_ext._C with CMake and Ninja. The package also works without it, in plain PyTorch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def mode_of(variable: str) -> str:
    """Return auto, on or off, from the environment."""
    mode = os.environ.get(variable, "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"{variable}={mode!r} is not understood: use auto, on or off.")
    return mode


def with_kernels() -> bool:
    """Return whether to compile the kernels: if there is a C++ compiler, unless UNLEARN_EXT_KERNELS is set."""
    mode = mode_of("UNLEARN_EXT_KERNELS")
    if mode == "on" and not cxx():
        raise SystemExit(
            "UNLEARN_EXT_KERNELS=on but no C++ compiler was found: install one and put it on PATH (or set CXX), or "
            "install without the kernels with UNLEARN_EXT_KERNELS=off."
        )
    return mode == "on" or (mode == "auto" and cxx() is not None)


def cxx() -> str | None:
    """Return the C++ compiler that CMake would find: CXX, else from PATH; None if there is none."""
    named = os.environ.get("CXX", "").split()[:1]
    return next(filter(shutil.which, (*named, "c++", "g++", "clang++", "cl")), None)


def cuda_mode() -> str:
    """Return UNLEARN_EXT_CUDA; exit if it is on and there is no CUDA compiler."""
    mode = mode_of("UNLEARN_EXT_CUDA")
    if mode == "on" and not nvcc():
        raise SystemExit(
            "UNLEARN_EXT_CUDA=on but no CUDA compiler was found: install the CUDA toolkit and put nvcc on PATH "
            "(or set CUDACXX), or build without CUDA with UNLEARN_EXT_CUDA=off."
        )
    return mode


def nvcc() -> str | None:
    """Return the CUDA compiler from CUDACXX, PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda; None if there is none."""
    named = os.environ.get("CUDACXX") or shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [named, *(str(Path(home, "bin", "nvcc")) for home in homes if home)]
    return next((path for path in found if path and shutil.which(path)), None)


def cuda_architectures() -> str:
    """Return UNLEARN_EXT_CUDA_ARCHS, else TORCH_CUDA_ARCH_LIST, else the visible GPUs'; "" lets CMake choose."""
    if chosen := os.environ.get("UNLEARN_EXT_CUDA_ARCHS"):
        return re.sub(r"[ ,]+", ";", chosen.strip()).replace(".", "")
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        numbers = re.findall(r"(\d+)\.(\d+a?)(\+PTX)?", listed)
        return ";".join(f"{major}{minor}" + ("" if ptx else "-real") for major, minor, ptx in numbers)
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    seen = sorted(
        {line.strip().replace(".", "") for line in answer.stdout.splitlines() if re.match(r"^\d+\.\d+$", line.strip())}
    )
    return ";".join(seen) if answer.returncode == 0 else ""


class CMakeBuild(build_ext):
    """Build command that runs CMake and Ninja; the module goes to the folder where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build the extension."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        (work / "CMakeCache.txt").unlink(missing_ok=True)  # it names an isolated environment that is gone by now
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DUNLEARN_EXT_CUDA={cuda_mode()}",
            f"-DUNLEARN_EXT_CUDA_ARCHS={cuda_architectures()}",
        ]  # fmt: skip
        if compiler := nvcc():
            configure.append(f"-DCMAKE_CUDA_COMPILER={compiler}")
        for command in (configure, ["cmake", "--build", str(work)]):
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(
                    f"unlearn_ext: '{' '.join(command[:2])}' failed; its messages are above. Set "
                    "UNLEARN_EXT_KERNELS=off to install the package without kernels."
                )


if __name__ == "__main__":
    extensions = [Extension("unlearn_ext._C", sources=[])] if with_kernels() else []
    setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
