"""All checks that need a GPU, without network access and within seven minutes: build, tests, step times, sanitizers.

The script uses the Python that runs it and installs nothing. Every part has a time limit; the report is written after
each. The exit status is 0 only if every part passed; parts that need what the machine does not have are left out.
"""

import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from parts import ROOT, Part, Report, run, summary

BUDGET = 420.0  # seconds
NEEDED = ["torch", "numpy", "pybind11", "cmake", "ninja", "setuptools", "pytest", "rich"]
SANITIZERS = ["memcheck", "racecheck", "initcheck"]
#: What runs under the sanitizers, ten to a hundred times as slow: for each rule a step in float32 and one in bfloat16,
#: and one with operands at different misalignments.
SANITIZED = "agrees and (mix0 or mix1) and few or alignment and offsets4 and dtype1"


def missing() -> str:
    """Return a message about what is missing on this machine; empty if nothing is."""
    commands = {"cmake": "cmake", "ninja": "ninja"}
    absent = [
        n for n in NEEDED if not importlib.util.find_spec(n) and not (n in commands and shutil.which(commands[n]))
    ]
    if absent:
        names = ", ".join(absent)
        return f"{sys.executable} has no {names}: install them, or use another Python: make gpu-check PYTHON=…"
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} of {sys.executable} finds no GPU: install a driver and a CUDA build of torch."
        )
    if not (shutil.which("nvcc") or Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc").exists()):
        return "nvcc not found: install the CUDA toolkit and add its bin folder to PATH."
    return ""


def without(module: str) -> str:
    """Return a message if the module is not installed, else an empty string."""
    return "" if importlib.util.find_spec(module) else f"{module} is not installed"


def stages(architecture: str, measured: Path) -> list[list[Part]]:
    """Return the parts in order of their value; those of one stage run at the same time.

    Args:
        architecture: of the GPU, such as ``90``; the kernels are compiled for no other.
        measured: file for the step times.
    """
    python = [sys.executable]
    pytest = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.none_passed", "--durations=5"]
    kernels, unlearning = [*pytest, "tests/ops/test_cuda.py"], [*pytest, "tests/unlearning/test_gpu.py"]
    build = {"UNLEARN_EXT_CUDA": "on", "UNLEARN_EXT_CUDA_ARCHS": f"{architecture}-real"}
    sanitizer = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH"
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else an access past a tensor may stay within torch's block

    def sanitized(tool: str) -> list[str]:
        options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        return ["compute-sanitizer", *options, *kernels, "-k", SANITIZED]

    return [
        [Part("build", [*python, "setup.py", "-q", "build_ext", "--inplace"], 60, build, required=True)],
        [Part("CUDA tests", kernels, 120)],
        [Part("step times", [*python, "benchmarks/gpu_steps.py", str(measured)], 90, measured=measured)],  # alone
        [
            *(Part(f"sanitizer {tool}", sanitized(tool), 90, uncached, absent=sanitizer) for tool in SANITIZERS),
            Part("unlearn an MAE", [*unlearning, "-k", "mae"], 90, absent=without("transformers")),
            Part("unlearn the others", [*unlearning, "-k", "not mae"], 90, absent=without("diffusers")),
            Part("documented CUDA graphs", [*pytest, "tests/docs", "-k", "cuda-graphs"], 60, absent=without("sybil")),
        ],
    ]


def main() -> int:
    """Run all checks; return the exit status."""
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no part outlives this process
    if sentence := missing():
        print(f"gpu-check: {sentence}")
        return 1
    import torch

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    machine = {
        "gpu": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu": {},
        "threads": os.cpu_count(),
    }
    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()
    path = ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}-{slug}-check.json"
    report = Report(path, {"machine_info": {**machine, "cpu_isa": ""}}, BUDGET, begin)
    print(f"gpu-check on {name}: at most {BUDGET:.0f} s; report: {path}", flush=True)
    logs = ROOT / "build" / "gpu-check"
    measured = logs / "steps.jsonl"
    measured.unlink(missing_ok=True)
    good = run(stages(f"{major}{minor}", measured), report, logs)
    if report.content["benchmarks"]:
        from rich.console import Console
        from table import table

        Console(width=160).print(table(report.content))
    print(summary(report))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
