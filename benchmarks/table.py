"""A table of a results file: our time, our bandwidth as a share of the copy's, and the peers as multiples of ours."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def rows(results: dict) -> list[dict]:
    """Return one entry per case, with the times of ours and of the peers in seconds."""
    found = []
    for result in results["benchmarks"]:
        info, stats = result["extra_info"], result["stats"]
        ours = {key: stats[key] / info["steps"] for key in ("median", "min", "max", "iqr")}
        peers = dict(info["peers"])
        copy = peers.pop("copy", None)
        found.append({**info, "ours": ours, "peers": peers, "copy": copy})
    return found


def share_of_copy(row: dict) -> float | None:
    """Return our bandwidth divided by the copy's; both count each byte read and written once."""
    if row["copy"] is None:
        return None
    return row["bytes"] / row["ours"]["median"] / (row["copy"]["bytes"] / row["copy"]["median"])


def seconds(value: float) -> str:
    """Format a time with its unit."""
    return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


COLUMNS = ("suite", "case", "ours", "± iqr", "GB/s", "of copy", "host", "memory", "peers")


def cells(row: dict) -> tuple[str, ...]:
    """Return the text of each of ``COLUMNS``; empty where a suite does not measure it."""
    share, extra = share_of_copy(row), row.get("extra_memory")
    return (
        row["suite"],
        " ".join(str(row[key]) for key in ("device", "optimizer", "size", "dtype")),
        seconds(row["ours"]["median"]),
        f"{100 * row['ours']['iqr'] / row['ours']['median']:.0f} %",
        f"{row['bytes'] / row['ours']['median'] / 1e9:.1f}" if "bytes" in row else "",
        f"{100 * share:.0f} %" if share else "",
        " / ".join(map(seconds, [row["host"], *row["host_free"]])) if "host" in row else "",
        f"{extra / 1024:.0f} KB" if extra is not None else "",
        ", ".join(f"{name} {peer['median'] / row['ours']['median']:.2f}×" for name, peer in row["peers"].items()),
    )


def table(results: dict) -> Table:
    """Return the table of a results file."""
    machine = results["machine_info"]
    where = machine["gpu"] or machine["cpu"].get("brand_raw", machine["cpu"].get("arch", ""))
    facts = (where, f"{machine['threads']} threads", machine["cpu_isa"], f"torch {machine['torch']}")
    title = ", ".join(filter(None, facts))
    view = Table(title=title, title_justify="left", caption="×: a peer's median divided by ours; larger is better")
    for name in COLUMNS:
        view.add_column(name, justify="left" if name in ("suite", "case", "peers") else "right")
    for row in rows(results):
        view.add_row(*cells(row))
    return view


if __name__ == "__main__":
    Console(width=200).print(table(json.loads(Path(sys.argv[1]).read_text())))
