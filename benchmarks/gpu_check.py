"""All checks that need a GPU, without network access: build, tests, sanitizers, benchmarks.

The script uses the Python that runs it and installs nothing. It ends with a table and a JSON file of the benchmarks.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = [
    "torch",
    "numpy",
    "pybind11",
    "cmake",
    "ninja",
    "setuptools",
    "pytest",
    "pytest_benchmark",
    "hypothesis",
    "rich",
]
SANITIZERS = ["memcheck", "racecheck", "initcheck"]


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


def run(title: str, command: list[str], aside: bool = False, **environment: str) -> bool:
    """Run a command and return whether it succeeded; with ``aside``, print its output at the end, all at once."""
    begin = time.perf_counter()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if aside else {}
    if not aside:
        print(f"── {title}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **environment}, **captured)
    try:
        printed, _ = process.communicate()
    except KeyboardInterrupt:  # the process gets it too, and may still write results
        printed, _ = process.communicate()
    outcome = f"── {title}: {'done' if process.returncode == 0 else 'FAILED'} in {time.perf_counter() - begin:.0f} s"
    print(f"── {title}\n{printed}{outcome}" if aside else outcome, flush=True)
    return process.returncode == 0


def checks(pytest: list[str]) -> list[tuple[str, list[str], dict[str, str]]]:
    """Return title, command and environment of the checks that may run in parallel."""
    tests = "tests/ops/test_cuda.py"
    found = [("CUDA tests", [*pytest, tests], {})]
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("transformers"):
        found.append(("every family on the GPU", [*pytest, "tests/unlearning/test_gpu.py"], {}))
    else:
        print("── diffusers or transformers is not installed: sweeps of the families are skipped")
    if importlib.util.find_spec("sybil"):
        found.append(("CUDA graphs as documented", [*pytest, "tests/docs", "-k", "cuda-graphs"], {}))
    if not shutil.which("compute-sanitizer"):
        print("── compute-sanitizer is not on PATH: its three checks are skipped")
        return found
    short = [*pytest, tests, "-k", "agrees and (mix0 or mix1) and few or alignment and offsets4 and dtype1"]
    for tool in SANITIZERS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *short]
        found.append((f"compute-sanitizer {tool}", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    return found


def main() -> int:
    """Run all checks; return the exit status."""
    if sentence := missing():
        print(f"gpu-check: {sentence}")
        return 1
    python, pytest = [sys.executable], [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if not run("build", [*python, "setup.py", "-q", "build_ext", "--inplace"], UNLEARN_EXT_CUDA="on"):
        return 1
    with ThreadPoolExecutor() as together:  # the benchmarks run later, alone
        begun = [together.submit(run, title, command, aside=True, **env) for title, command, env in checks(pytest)]
    good = all(check.result() for check in begun)
    results = ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}-{device_name()}.json"
    good &= run(
        "benchmarks", [*pytest, "benchmarks", "-k", "cuda", "--benchmark-disable-gc", f"--benchmark-json={results}"]
    )
    if results.exists() and results.stat().st_size:
        good &= run("table", [*python, "benchmarks/table.py", str(results)])
    return 0 if good else 1


def device_name() -> str:
    """Return the GPU's name as part of a file name."""
    import torch

    return "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name()).strip("-").lower()


if __name__ == "__main__":
    sys.exit(main())
