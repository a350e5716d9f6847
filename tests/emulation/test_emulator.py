"""The emulator finds each kind of fault that it is meant to find, and nothing in correct kernels."""

import re
import subprocess
from pathlib import Path

import pytest
from emulated import ORDERS, needs_compiler, run

HERE = Path(__file__).parent
pytestmark = needs_compiler

# Kernels of faulty.cu.
ORDER_DEPENDENT = ["reverse", "reverse_twice", "rotate_in_warp", "race", "last_block"]
STUCK = {
    "early_return": r"thread 0 waits at __syncthreads \(.*\) for thread 64, which has finished",
    "two_barriers": r"thread 0 waits at __syncthreads \(.*:\d+\) for thread 1, which waits at __syncthreads \(.*:\d+\)",
    "divergent_shuffle": r"thread 0 waits at __shfl_down_sync \(.*\) for thread 16, which waits at __shfl_sync \(.*\)",
    "outside_mask": r"thread 16 waits at __shfl_sync \(.*\) for thread 0, which has finished",
    "absent_source": r"thread \d+ reads lane 20, which does not take part in __shfl_sync \(.*\)",
}
SANITIZED = {
    "outside_shared": "global-buffer-overflow",
    "outside_global": "heap-buffer-overflow",
    "outside_local": "stack-buffer-overflow",
    "misaligned": "misaligned address",
}


def compiled(folder: Path, *options: str) -> Path:
    program = folder / "faulty"
    run("g++", "-std=c++17", "-O1", *options, "-I", HERE, "-x", "c++", HERE / "faulty.cu", "-o", program)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("emulator"), "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    options = ("-fsanitize=address,alignment", "-fsanitize-sections=cuda_shared", "-fno-sanitize-recover=all", "-g1")
    return compiled(tmp_path_factory.mktemp("sanitized"), *options)


def results(program, kernel, fault):
    """Return what a kernel computes in each order."""
    return [run(program, kernel, str(int(fault)), CUDA_EMULATION_ORDER=order) for order in ORDERS]


@pytest.mark.parametrize("kernel", [*ORDER_DEPENDENT, "uninitialized", *STUCK, *SANITIZED])
def test_a_correct_kernel_gives_one_result_in_every_order(program, kernel):
    assert len(set(results(program, kernel, fault=False))) == 1


@pytest.mark.parametrize("kernel", ORDER_DEPENDENT)
def test_a_race_or_a_missing_barrier_makes_the_result_depend_on_the_order(program, kernel):
    assert len(set(results(program, kernel, fault=True))) > 1


def test_shared_memory_that_was_not_written_reads_as_nan(program):
    assert all("nan" in result for result in results(program, "uninitialized", fault=True))


@pytest.mark.parametrize("kernel", STUCK)
@pytest.mark.parametrize("order", ORDERS)
def test_threads_that_wait_for_one_another_are_one_error(program, kernel, order):
    process = subprocess.run(
        [program, kernel, "1"], capture_output=True, text=True, check=False, env={"CUDA_EMULATION_ORDER": order}
    )
    assert process.returncode == 2
    assert re.fullmatch(f"block 0: {STUCK[kernel]}\n", process.stdout), process.stdout


def test_votes_and_shuffles(program):
    everything = set(results(program, "everything", fault=False))
    assert len(everything) == 1
    values = [float(text) for text in everything.pop().split()]
    for i, value in enumerate(values):
        lane, warp = i % 32, i // 32 * 32
        assert value == sum(range(warp, warp + 32)) + 1000 * (lane + 3 if lane < 29 else lane) + 31 - 5


@pytest.mark.slow
@pytest.mark.parametrize("kernel", SANITIZED)
def test_an_invalid_access_is_found_by_the_sanitizers(sanitized, kernel):
    run(sanitized, kernel, "0")
    with pytest.raises(AssertionError, match=SANITIZED[kernel]):
        run(sanitized, kernel, "1")
