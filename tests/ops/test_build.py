"""A build that cannot succeed fails with one sentence, and the core works without extras."""

import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from steps import needs_kernels

import unlearn_ext as ux
from unlearn_ext.ops import extension

ROOT = Path(__file__).parents[2]
EXTRAS = ("diffusers", "typer", "rich", "matplotlib", "mlxtend", "PIL", "jinja2", "safetensors", "filelock", "psutil")
POSIX = ("fcntl", "resource", "pwd", "grp", "termios")


@pytest.fixture
def build(monkeypatch):
    """Run setup.py as on a machine without compilers and return its functions."""
    pytest.importorskip("setuptools")
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    variables = ("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "UNLEARN_EXT_CUDA", "UNLEARN_EXT_CUDA_ARCHS")
    for name in (*variables, "UNLEARN_EXT_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_cuda_on_without_nvcc_is_one_sentence(build, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_CUDA", "on")
    with pytest.raises(SystemExit, match="no CUDA compiler was found: install the CUDA toolkit and put nvcc on PATH"):
        build["cuda_mode"]()


def test_cuda_auto_without_nvcc_builds_for_the_cpu(build):
    assert build["cuda_mode"]() == "auto"


def test_an_unknown_cuda_mode_is_refused(build, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_CUDA", "maybe")
    with pytest.raises(SystemExit, match="use auto, on or off"):
        build["cuda_mode"]()


def test_kernels_on_without_a_compiler_is_one_sentence(build, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_KERNELS", "on")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler was found: install one and put it on PATH"):
        build["with_kernels"]()


def test_kernels_are_left_out_without_a_compiler_or_on_request(build, monkeypatch):
    assert not build["with_kernels"]()
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: "/usr/bin/c++")
    assert build["with_kernels"]()
    monkeypatch.setenv("UNLEARN_EXT_KERNELS", "off")
    assert not build["with_kernels"]()


def test_architectures_come_from_the_environment(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a+PTX")
    assert build["cuda_architectures"]() == "80-real;90a"
    monkeypatch.setenv("UNLEARN_EXT_CUDA_ARCHS", "8.6, 90")
    assert build["cuda_architectures"]() == "86;90"


def test_the_core_needs_no_extra_and_no_posix_module():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS + POSIX!r}))
import torch, unlearn_ext as ux
p = torch.nn.Parameter(torch.ones(3))
for kind in (ux.EpsilonSGD, ux.EpsilonAdamW):
    optimizer = kind([p], lr=0.01, control=ux.EpsilonGap(0.1))
    f1 = p.square().sum()
    f1.backward()
    optimizer.hold_constraint(f1)
    (p - 1).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.stats.lam > 0
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_there_and_no_others():
    for module in (ux, ux.ops, ux.optim):
        assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for module in (ux.ops, ux.optim) for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ux.nothing  # noqa: B018


@needs_kernels
def test_build_info_names_the_paths_not_taken():
    info = ux.build_info()
    assert info["cpu_kernels"]
    assert info["cpu_isa"] in {"baseline", "avx2", "avx512"}
    assert info["cuda_compiled"] == bool(info["cuda_archs"])
    assert all(sentence.endswith(".") for sentence in info["why"])


SENTENCES = {
    "no module": (
        {"kernels": None, "missing": "it is not there"},
        ["CPU kernels are not used: it is not there.", "CUDA kernels are not used: it is not there."],
    ),
    "no CUDA in it": ({"archs": ""}, ["CUDA kernels are not used: the module was built without CUDA; reinstall with"]),
    "ROCm": ({"hip": "6.0"}, ["CUDA kernels are not used: there are no kernels for ROCm."]),
    "no device": ({"device": False}, ["CUDA kernels are not used: torch sees no CUDA device here."]),
    "all there": ({"device": True}, []),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_build_info_says_why_in_a_sentence_each(name, monkeypatch):
    found, sentences = SENTENCES[name]
    kernels = types.SimpleNamespace(CUDA_ARCHS=found.get("archs", "90"), cpu_isa=lambda: "baseline")
    monkeypatch.setattr(extension, "kernels", found.get("kernels", kernels))
    monkeypatch.setattr(extension, "missing", found.get("missing", ""))
    monkeypatch.setattr(torch.version, "hip", found.get("hip"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.get("device", True))
    info = ux.build_info()
    assert all(said.startswith(sentence) for said, sentence in zip(info["why"], sentences, strict=True)), info["why"]
    assert info["cpu_kernels"] == (name != "no module")
    assert info["cuda_compiled"] == bool(info["cuda_archs"]) == (name not in ("no module", "no CUDA in it"))
