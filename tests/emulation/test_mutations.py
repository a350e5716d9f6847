"""Faults that are put into csrc/cuda/step.cu are found by the tests of the emulated kernels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import ROOT, build, needs_compiler, sanitized_environment
from steps import needs_kernels

pytestmark = [
    needs_kernels,
    needs_compiler,
    pytest.mark.slow,
    pytest.mark.skipif(
        "UNLEARN_EXT_MUTATIONS" not in os.environ, reason="every fault is a build of its own: make sanitize runs them"
    ),
]

SOURCE = (ROOT / "csrc/cuda/step.cu").read_text()
BARRIERS = [match.start() for match in re.finditer(r"__syncthreads\(\);", SOURCE)]


def without(position: int) -> str:
    """Return the source without the barrier at ``position``."""
    return SOURCE[:position] + SOURCE[position:].replace("__syncthreads();", "", 1)


def replaced(old: str, new: str) -> str:
    assert old in SOURCE
    return SOURCE.replace(old, new)


MUTATIONS = {
    **{f"no barrier in line {SOURCE.count(chr(10), 0, i) + 1}": without(i) for i in BARRIERS},
    "a barrier in a branch": replaced("double sum = 0;", "double sum = 0; __syncthreads();"),
    "the counter is not reset": replaced("if (last) *counter = 0;", ""),
    "the last block is not the last to finish": replaced("atomicAdd(counter, 1u) == gridDim.x - 1", "blockIdx.x == 0"),
    "a shuffle in a branch": replaced("x += __shfl_down_sync", "if (threadIdx.x % 32 < 16) x += __shfl_down_sync"),
}


class Copy:
    """A copy of the sources, whose kernels may be changed."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.folder, self.options, self.environment = folder, options, environment
        for name in ("csrc", "tests/emulation"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "CMakeLists.txt", folder)

    def test(self, source: str) -> subprocess.CompletedProcess:
        """Build the kernels from ``source`` and test them in another process."""
        (self.folder / "csrc/cuda/step.cu").write_text(source)
        environment = {"UNLEARN_EXT_EMULATED": str(build(self.folder / "build", *self.options, source=self.folder))}
        tests = ROOT / "tests/emulation/test_emulated_kernels.py"
        command = (sys.executable, "-m", "pytest", "-qxs", "-p", "no:cacheprovider", tests)  # -s: a sanitizer's message
        environment = {**os.environ, **environment, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_tests_find(plain, mutation):
    result = plain.test(MUTATIONS[mutation])
    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]


def test_no_finding_under_the_sanitizers_but_a_fault_that_is_put_in(tmp_path):
    sanitized = Copy(tmp_path, "-DUNLEARN_EXT_SANITIZE=address,undefined", **sanitized_environment())
    result = sanitized.test(SOURCE)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    result = sanitized.test(replaced("n - n_single + k;", "n - n_single + k + 1;"))
    assert "heap-buffer-overflow" in result.stderr, result.stdout[-2000:] + result.stderr[-2000:]
