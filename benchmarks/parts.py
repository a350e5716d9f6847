"""Run commands as the parts of one check: a time limit for each, a budget for all, and a report written after each."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Seconds from the interrupt at a part's limit, after which pytest still prints its failures, until the part is killed.
GRACE = 3.0
KEPT, SHOWN = 80, 40  # last lines of a part's output: in the report, and on the screen if it did not pass


@dataclass(frozen=True)
class Part:
    """A command with a time limit.

    Attributes:
        name: title, also the name of its log file.
        command: the command, run in the repository's root.
        limit: seconds after which it is cut.
        environment: variables in addition to those of this process.
        required: whether all later parts are skipped if this one does not pass.
        absent: what this machine lacks to run it; empty if nothing.
        measured: file to which the command appends one JSON object per line; they are added to the report's
            ``benchmarks``, also if the part is cut.
    """

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = False
    absent: str = ""
    measured: Path | None = None


class Report:
    """A JSON file with the outcome of each part; a part may add measurements.

    Args:
        path: where to write it.
        facts: further entries.
        budget: seconds for all parts together.
        begin: ``time.monotonic()`` at which the budget began.
    """

    def __init__(self, path: Path, facts: dict, budget: float, begin: float) -> None:
        self.path, self.budget, self.begin = path, budget, begin
        self.content = {**facts, "budget": budget, "seconds": 0.0, "passed": False, "parts": [], "benchmarks": []}

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.begin + self.budget - time.monotonic()

    def add(self, part: Part, outcome: str, why: str = "", seconds: float = 0.0, output: Iterable[str] = ()) -> None:
        """Add the outcome of a part, print it, and write the file."""
        lines = list(output)
        said = why or (lines[-1] if lines else "")
        for line in lines[-SHOWN:] if outcome in ("failed", "cut") else []:
            print(f"   {line}")
        took = f" {'at' if outcome == 'cut' else 'in'} {seconds:.0f} s" if seconds else ""
        print(f"── {part.name}: {outcome}{took}: {said}", flush=True)
        record = {"name": part.name, "outcome": outcome, "why": why, "seconds": round(seconds, 1), "limit": part.limit}
        self.content["parts"].append({**record, "output": lines[-KEPT:]})
        self.content["benchmarks"] += complete_lines(part.measured)
        self.write()

    def write(self, passed: bool = False) -> None:
        """Write the file; a reader never finds half of it."""
        self.content.update(seconds=round(time.monotonic() - self.begin, 1), passed=passed)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        draft.replace(self.path)


def complete_lines(path: Path | None) -> list[dict]:
    """Return the JSON objects in a file of lines, without a last line that was not finished."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Running:
    """A part that runs in a process group of its own, with its output in a log file."""

    def __init__(self, part: Part, logs: Path) -> None:
        self.part, self.begin, self.cut = part, time.monotonic(), False
        self.log = logs / f"{part.name.replace(' ', '-')}.log"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **part.environment},
                start_new_session=True,
            )  # fmt: skip

    def ended(self) -> bool:
        """Return whether the part has ended; past its limit it is interrupted, then killed."""
        late = time.monotonic() - self.begin - self.part.limit
        if self.process.poll() is None and late <= GRACE:
            if late > 0 and not self.cut:
                self.cut = True
                self.send(signal.SIGINT)
            return False
        if self.process.returncode is None or self.cut:  # also what its processes left behind
            self.cut = True
            self.send(signal.SIGKILL)  # not waited for: a process that hangs in a driver does not end
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the part that are left."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def record(self, report: Report) -> bool:
        """Add the outcome to the report; return whether the part passed."""
        code, seconds = self.process.poll(), time.monotonic() - self.begin
        outcome, why = ("passed", "") if code == 0 else ("failed", f"exit status {code}; see {self.log}")
        if self.cut:
            outcome, why = "cut", f"its limit is {self.part.limit:.0f} s; see {self.log}"
        report.add(self.part, outcome, why, seconds, self.log.read_text(errors="replace").splitlines())
        return outcome == "passed"


def run(stages: list[list[Part]], report: Report, logs: Path) -> bool:
    """Run the stages in order, the parts of a stage at the same time; return whether every part passed.

    A part that might end after the budget is skipped. Parts that this machine cannot run are listed as left out.
    """
    logs.mkdir(parents=True, exist_ok=True)
    good, failed = True, ""
    for stage in stages:
        running: list[Running] = []
        try:
            for part in stage:
                if part.absent:
                    report.add(part, "left out", part.absent)
                elif failed or part.limit + GRACE > report.left():
                    good = False
                    late = f"{max(report.left(), 0):.0f} s are left, and it may take {part.limit + GRACE:.0f} s"
                    report.add(part, "skipped", f"'{failed}' did not pass" if failed else late)
                else:
                    print(f"── {part.name}: at most {part.limit:.0f} s", flush=True)
                    running.append(Running(part, logs))
            while running:
                time.sleep(0.05)
                for done in [r for r in running if r.ended()]:
                    running.remove(done)
                    passed = done.record(report)
                    good &= passed
                    failed = done.part.name if done.part.required and not passed else failed
        finally:  # something is left only after Ctrl-C or SIGTERM
            for rest in running:
                rest.send(signal.SIGKILL)
                report.add(rest.part, "cut", "the check was interrupted", time.monotonic() - rest.begin)
    report.write(passed=good)
    return good


def summary(report: Report) -> str:
    """Return one line per part, and the total."""
    parts = report.content["parts"]
    lines = [f"{p['name']:<32}{p['outcome']:<10}{p['seconds']:>7.1f} s of {p['limit']:.0f} s" for p in parts]
    state = "passed" if report.content["passed"] else "did not pass"
    total = f"{'total':<42}{report.content['seconds']:>7.1f} s of {report.budget:.0f} s"
    return "\n".join([*lines, total, f"The check {state}. Report: {report.path}"])
