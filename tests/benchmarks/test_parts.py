"""The parts of a check: outcomes, time limits, the budget, and a report that is complete after every part."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import parts
import pytest
from parts import Part, Report, run, summary


def python(name: str, code: str, limit: float = 30.0, **options) -> Part:
    return Part(name, [sys.executable, "-c", code], limit, **options)


def sleeping(name: str = "sleeps", limit: float = 2.0, **options) -> Part:
    return python(name, "import time; print('begun'); time.sleep(60)", limit, **options)


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "results" / "check.json", {"machine_info": {"gpu": "none"}}, 60.0, time.monotonic())


def outcomes(report: Report) -> dict[str, str]:
    return {part["name"]: part["outcome"] for part in json.loads(report.path.read_text())["parts"]}


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_every_part_passes(report, tmp_path, capsys):
    assert run([[python("one", "print('12 passed')")], [python("two", "pass")]], report, tmp_path)
    written = json.loads(report.path.read_text())
    assert written["passed"] is True
    assert written["machine_info"] == {"gpu": "none"}
    assert [part["output"] for part in written["parts"]] == [["12 passed"], []]
    assert 0 < written["parts"][0]["seconds"] <= written["seconds"] < 60
    said = capsys.readouterr().out
    assert "── one: at most 30 s" in said
    assert ": 12 passed" in said
    assert "The check passed" in summary(report)
    assert str(report.path) in summary(report)


def test_a_part_that_fails_does_not_stop_the_others(report, tmp_path, capsys):
    assert not run([[python("bad", "print('because'); exit(3)")], [python("good", "pass")]], report, tmp_path)
    assert outcomes(report) == {"bad": "failed", "good": "passed"}
    said = capsys.readouterr().out
    assert "   because" in said
    assert f"exit status 3; see {tmp_path / 'bad.log'}" in said
    assert "The check did not pass" in summary(report)


def test_a_part_is_cut_at_its_limit_and_the_others_run(report, tmp_path, capsys):
    begin = time.monotonic()
    assert not run([[sleeping()], [python("next", "pass")]], report, tmp_path)
    assert time.monotonic() - begin < 10
    assert outcomes(report) == {"sleeps": "cut", "next": "passed"}
    assert "begun" in report.content["parts"][0]["output"]
    assert re.search(r"── sleeps: cut at \d+ s: its limit is 2 s", capsys.readouterr().out)


def test_a_cut_part_that_ends_with_status_0_did_not_pass(report, tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass"
    assert not run([[python("quiet", code, limit=2.0)]], report, tmp_path)
    assert outcomes(report) == {"quiet": "cut"}


def test_a_part_that_ignores_the_interrupt_is_killed_with_its_children(report, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GRACE", 0.5)
    code = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = os.fork()
if child:
    open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child}}")
time.sleep(60)
"""
    assert not run([[python("stubborn", code, limit=3.0)]], report, tmp_path)
    assert outcomes(report) == {"stubborn": "cut"}
    assert report.content["parts"][0]["seconds"] < 10
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert until(lambda pid=pid: not alive(pid))


@pytest.fixture
def interruptible():
    """Let new processes react to SIGINT, also where this one was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_cut_pytest_still_prints_its_failures(report, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GRACE", 30.0)  # a busy machine is slow at printing
    tests = tmp_path / "test_it.py"
    tests.write_text(
        "import time\ndef test_a(): assert 1 == 2, 'the reason'\n"
        f"def test_b():\n    open({str(tmp_path / 'begun')!r}, 'w')\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", str(tests)]
    assert not run([[Part("tests", command, 8.0)]], report, tmp_path)
    assert (tmp_path / "begun").exists()
    assert outcomes(report) == {"tests": "cut"}
    assert any("the reason" in line for line in report.content["parts"][0]["output"])


def test_nothing_runs_after_a_required_part_that_did_not_pass(report, tmp_path):
    never = tmp_path / "never"
    stages = [[python("build", "exit(1)", required=True)], [python("tests", f"open({str(never)!r}, 'w')")]]
    assert not run(stages, report, tmp_path)
    assert outcomes(report) == {"build": "failed", "tests": "skipped"}
    assert report.content["parts"][1]["why"] == "'build' did not pass"
    assert not never.exists()


def test_a_part_that_does_not_fit_the_budget_is_skipped_and_a_shorter_one_runs(report, tmp_path):
    report.budget = 20.0
    assert not run([[python("long", "pass", limit=30.0)], [python("short", "pass", limit=5.0)]], report, tmp_path)
    assert outcomes(report) == {"long": "skipped", "short": "passed"}
    assert report.content["parts"][0]["why"] == "20 s are left, and it may take 33 s"


def test_the_budget_counts_from_its_begin(report, tmp_path):
    report.begin -= 58  # of 60 seconds
    assert not run([[python("late", "pass", limit=1.0)]], report, tmp_path)
    assert outcomes(report) == {"late": "skipped"}


def test_a_part_that_the_machine_cannot_run_is_left_out(report, tmp_path):
    assert run([[python("other", "exit(1)", absent="sybil not installed")]], report, tmp_path)
    assert outcomes(report) == {"other": "left out"}
    assert "left out" in summary(report)


def test_the_parts_of_a_stage_run_at_the_same_time(report, tmp_path):
    code = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert run([[python("a", code.format(a, b)), python("b", code.format(b, a))]], report, tmp_path)


def test_the_report_is_written_after_every_part(report, tmp_path):
    code = f"import json; parts = json.load(open({str(report.path)!r}))['parts']; assert parts[0]['outcome'] == 'cut'"
    run([[sleeping()], [python("reads", code)]], report, tmp_path)
    assert outcomes(report) == {"sleeps": "cut", "reads": "passed"}


def test_what_a_cut_part_has_measured_is_kept(report, tmp_path):
    lines = tmp_path / "lines"
    code = f"import time\nwith open({str(lines)!r}, 'w') as f: f.write('{{\"a\": 1}}\\n{{\"a\":')\ntime.sleep(60)"
    run([[python("times", code, limit=2.0, measured=lines)]], report, tmp_path)
    assert outcomes(report) == {"times": "cut"}
    assert json.loads(report.path.read_text())["benchmarks"] == [{"a": 1}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_part_outlives_the_check(tmp_path, number):
    script = f"""
import pathlib, signal, sys, time
sys.path.insert(0, {str(parts.ROOT / "benchmarks")!r})
from parts import Part, Report, run
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = pathlib.Path({str(tmp_path)!r})
code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()) + '.'); time.sleep(60)"
report = Report(folder / "check.json", {{}}, 60.0, time.monotonic())
run([[Part("sleeps", [sys.executable, "-c", code, str(folder / "pid")], 30.0)]], report, folder)
"""
    check = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    assert until(lambda: pid.exists() and pid.read_text().endswith("."))
    os.kill(check.pid, number)
    assert check.wait(10) != 0
    assert until(lambda: not alive(int(pid.read_text()[:-1])))
    (part,) = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert (part["outcome"], part["why"]) == ("cut", "the check was interrupted")
