"""The C++ code without Python, under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CMAKE = shutil.which("cmake", path=Path(sys.executable).parent) or shutil.which("cmake")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CMAKE is None or shutil.which("g++") is None, reason="cmake and g++ are needed"),
]


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def built(name: str, sanitizer: str) -> Path:
    """Build a target of CMakeLists.txt with a sanitizer, if a source has changed; return the program's path."""
    folder = ROOT / "build" / f"faults-{sanitizer.partition(',')[0]}"
    options = (f"-DUNLEARN_EXT_SANITIZE={sanitizer}", "-DUNLEARN_EXT_FUZZ=ON", "-DCMAKE_CXX_COMPILER=g++")
    run(CMAKE, "-S", ROOT, "-B", folder, *options)
    run(CMAKE, "--build", folder, "--parallel", "2", "--target", name)
    return folder / name


def test_the_corpus_under_address_and_undefined_behaviour_sanitizers():
    corpus = sorted((HERE / "corpus").iterdir())
    assert run(built("fuzz_step", "address,undefined"), *corpus) == f"{len(corpus)} inputs without a finding\n"


def test_ten_thousand_random_steps_under_the_same_sanitizers():
    assert run(built("fuzz_step", "address,undefined"), "10000") == "10000 inputs without a finding\n"


def test_a_hundred_thousand_quadratic_programs_under_the_same_sanitizers():
    assert run(built("fuzz_qp", "address,undefined"), "100000") == "100000 inputs without a finding\n"


def test_two_trainers_under_thread_sanitizer():
    assert run(built("two_trainers", "thread")) == "the same bits\n"
