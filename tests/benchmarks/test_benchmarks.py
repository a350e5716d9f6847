"""The benchmarks run, and every timed implementation takes its step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_ext.ops import extension

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(extension.kernels is None, reason=extension.missing)
def test_the_smallest_problem_of_each_suite(tmp_path):
    pytest.importorskip("pytest_benchmark")
    results = tmp_path / "results.json"
    suites = [f"benchmarks/test_{name}.py" for name in ("step", "projection", "several", "averaged")]
    smallest = "cpu-19.2k/300 and not (sgd-2 or sgd-8)"  # compiling the step of each number of constraints takes long
    options = ["-k", smallest, "--benchmark-max-time=0.01", f"--benchmark-json={results}", "-q"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *suites, *options],
        cwd=ROOT, env=alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    table = subprocess.run(
        [sys.executable, "benchmarks/table.py", str(results)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "No module named 'rich'" in table.stderr:
        pytest.skip("rich is not installed: the table was not printed")
    assert "foreach + fused AdamW" in table.stdout, table.stderr
    assert "in one matrix" in table.stdout
    assert "not averaged" in table.stdout


def test_the_noise_suite_meets_epsilon_without_noise(tmp_path):
    results = tmp_path / "control.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.control", "--only", "bounded norm", "--json", str(results)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for name, outcomes in json.loads(results.read_text())["noise"].items():
        assert abs(outcomes["full"]["end"] - 1) < 0.01, name
