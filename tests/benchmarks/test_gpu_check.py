"""What can be tested of ``make gpu-check`` without a GPU: its plan, its selections of tests, and its step times."""

import json
import signal
import subprocess
import sys

import gpu_check
import pytest
import torch
from parts import GRACE, ROOT, Part

from unlearn_ext.ops import extension

needs_kernels = pytest.mark.skipif(extension.kernels is None, reason=extension.missing)


def plan(tmp_path) -> dict[str, Part]:
    return {part.name: part for stage in gpu_check.stages("90", tmp_path / "steps") for part in stage}


def test_all_parts_fit_the_budget(tmp_path):
    longest = sum(max(part.limit for part in stage) + GRACE for stage in gpu_check.stages("90", tmp_path))
    assert longest <= gpu_check.BUDGET - 20  # for the import of torch and the table
    assert gpu_check.BUDGET <= 7 * 60


def test_the_build_is_for_the_architecture_at_hand(tmp_path):
    build = plan(tmp_path)["build"]
    assert build.environment == {"UNLEARN_EXT_CUDA": "on", "UNLEARN_EXT_CUDA_ARCHS": "90-real"}
    assert build.limit <= 60
    assert build.required


def test_step_times_are_taken_alone(tmp_path):
    (alone,) = [stage for stage in gpu_check.stages("90", tmp_path) if any(part.measured for part in stage)]
    assert len(alone) == 1


def test_what_the_machine_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    absent = {name: part.absent for name, part in plan(tmp_path).items() if part.absent}
    assert absent == {
        **{f"sanitizer {tool}": "compute-sanitizer is not on PATH" for tool in gpu_check.SANITIZERS},
        "unlearn an MAE": "transformers is not installed",
        "unlearn the others": "diffusers is not installed",
        "documented CUDA graphs": "sybil is not installed",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CUDA tests", "sanitizer memcheck", "unlearn an MAE", "unlearn the others"])
def test_each_part_selects_tests(name, tmp_path):
    part = plan(tmp_path)[name]
    command = part.command[part.command.index(sys.executable) :]
    run = subprocess.run([*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout  # 5 if nothing is selected
    assert run.stdout.count("::test_") >= 5
    if name.startswith("sanitizer"):
        assert run.stdout.count("::test_") <= 30


@pytest.mark.parametrize(
    ("code", "status"), [("import pytest; pytest.skip('no GPU')", 5), ("pass", 0), ("assert 0", 1)]
)
def test_tests_that_are_all_skipped_do_not_pass(tmp_path, code, status):
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {code}\n")
    command = plan(tmp_path)["CUDA tests"].command[:-1]
    run = subprocess.run([*command, "-c", "/dev/null", str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == status, run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_gets_one_sentence():
    command = [sys.executable, "benchmarks/gpu_check.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout.startswith("gpu-check: ")
    assert len(run.stdout.splitlines()) == 1


@needs_kernels
def test_step_times_of_every_case_can_be_shown():
    pytest.importorskip("rich")
    import gpu_steps
    from problems import Size
    from table import cells, rows

    for case in gpu_steps.CASES:
        for dtype in (torch.float32, torch.bfloat16):
            result = gpu_steps.measure(case, Size(19_200, 300), dtype, device="cpu", rounds=3)
            (row,) = rows({"benchmarks": [json.loads(json.dumps(result))]})
            assert row["bytes"] == case.elements * dtype.itemsize * 19_200
            shown = cells(row)
            assert case.name in shown[1]
            assert shown[4]  # GB/s
            assert shown[5].endswith(" %")  # of the copy


@needs_kernels
@pytest.mark.parametrize("status", [0, 1])
def test_the_whole_check_with_parts_that_need_no_gpu(tmp_path, monkeypatch, capsys, status):
    pytest.importorskip("rich")
    code = """
import json, sys, torch, gpu_steps
from problems import Size
result = gpu_steps.measure(gpu_steps.CASES[0], Size(19_200, 300), torch.float32, device="cpu", rounds=3)
open(sys.argv[1], "w").write(json.dumps(result) + "\\n")
"""

    def stages(architecture, measured):
        environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
        times = Part("step times", [sys.executable, "-c", code, str(measured)], 60.0, environment, measured=measured)
        return [[times], [Part(f"ends with {status}", [sys.executable, "-c", f"exit({status})"], 10.0)]]

    monkeypatch.setattr(gpu_check, "stages", stages)
    monkeypatch.setattr(gpu_check, "missing", lambda: "")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert gpu_check.main() == status
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().out
    assert said.startswith("gpu-check on NVIDIA H200: at most 420 s")
    assert "19.2k/300" in said
    (path,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert path.name.endswith("nvidia-h200-check.json")
    assert said.splitlines()[-1].endswith(str(path))
    written = json.loads(path.read_text())
    assert written["passed"] is (status == 0)
    assert [part["outcome"] for part in written["parts"]] == ["passed", "failed" if status else "passed"]
    assert len(written["benchmarks"]) == 1
