"""Builds the one extension, unlearn_ext._C, by driving CMake and Ninja; CMakeLists.txt says how."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def cuda_mode() -> str:
    mode = os.environ.get("UNLEARN_EXT_CUDA", "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"UNLEARN_EXT_CUDA={mode!r} is not understood: use auto, on or off.")
    if mode == "on" and not nvcc():
        raise SystemExit(
            "UNLEARN_EXT_CUDA=on but no CUDA compiler was found: install the CUDA toolkit and put nvcc on PATH "
            "(or set CUDACXX), or build without CUDA with UNLEARN_EXT_CUDA=off."
        )
    return mode


def nvcc() -> str | None:
    """The CUDA compiler as CMake will look for it: CUDACXX, PATH, CUDA_HOME, the toolkit's usual place."""
    named = os.environ.get("CUDACXX") or shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [named, *(str(Path(home, "bin", "nvcc")) for home in homes if home)]
    return next((path for path in found if path and shutil.which(path)), None)


def cuda_architectures() -> str:
    """UNLEARN_EXT_CUDA_ARCHS, else TORCH_CUDA_ARCH_LIST, else the visible GPUs'; "" leaves the choice to CMake."""
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
    """CMake configures and Ninja builds into the folder where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        (work / "CMakeCache.txt").unlink(missing_ok=True)  # a cache would outlive the isolated environment it names
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
                raise SystemExit(f"unlearn_ext: '{' '.join(command[:2])}' failed; its messages are above.")


if __name__ == "__main__":
    setup(ext_modules=[Extension("unlearn_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
