"""Hooks: print each case when it is timed, and keep what identifies the machine out of the results file."""

import platform

import torch
from table import COLUMNS, cells, rows

import unlearn_ext as ux


def pytest_runtest_teardown(item):
    """Print the result of a case at once, so that it is seen if the run is interrupted."""
    benchmark = item.funcargs.get("benchmark")
    if benchmark is None or not benchmark.stats:
        return
    (row,) = rows({"benchmarks": [benchmark.stats.as_dict(include_data=False)]})
    said = [f"{name} {cell}" for name, cell in zip(COLUMNS[2:], cells(row)[2:], strict=True) if cell]
    plugins = item.config.pluginmanager
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        plugins.get_plugin("terminalreporter").write_line(f" {' '.join(cells(row)[:2])}: {'; '.join(said)}")


def pytest_benchmark_update_machine_info(config, machine_info):
    """Remove what identifies the machine; add versions, threads and devices."""
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)
    machine_info["cpu"].pop("flags", None)
    machine_info.update(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        cpu_isa=ux.build_info()["cpu_isa"],
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        system=platform.system(),
    )


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep what the table and the plots need; single timings would make the file large."""
    for result in output_json["benchmarks"]:
        result["stats"].pop("data", None)
        result.pop("options", None)
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id", "")}
