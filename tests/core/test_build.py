"""What the build promises: one sentence where it cannot, and a core that needs no extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unlearn_ext as ux

ROOT = Path(__file__).parents[2]
EXTRAS = ("diffusers", "typer", "rich", "matplotlib", "mlxtend", "PIL", "jinja2", "safetensors")


@pytest.mark.skipif(
    Path("/usr/local/cuda/bin/nvcc").exists(), reason="a CUDA toolkit stands where the build looks for it"
)
def test_cuda_on_without_nvcc_is_one_sentence(tmp_path):
    pytest.importorskip("setuptools")
    hidden = {"CUDACXX", "CUDA_HOME", "CUDA_PATH"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": "", "UNLEARN_EXT_CUDA": "on"}
    command = [
        sys.executable,
        str(ROOT / "setup.py"),
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("UNLEARN_EXT_CUDA=on but no CUDA compiler was found: install the CUDA toolkit")


def test_the_core_imports_without_any_extra():
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); import unlearn_ext; unlearn_ext.EpsilonSGD"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_build_info_names_the_paths_not_taken():
    info = ux.build_info()
    assert info["cpu_kernels"]
    assert info["cpu_isa"] in {"baseline", "avx2", "avx512"}
    assert info["cuda_compiled"] == bool(info["cuda_archs"])
    assert all(sentence.endswith(".") for sentence in info["why"])
