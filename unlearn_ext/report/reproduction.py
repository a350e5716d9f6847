"""The page of an experiment with baselines."""

from __future__ import annotations

import itertools
from pathlib import Path

from ..baselines import METHODS
from ..errors import UserError
from ..reproduction.compare import WORST_F2, standings
from ..reproduction.plan import kept
from ..reproduction.table import Cost, Row, Table
from ..writing import write_atomically
from .comparison import comparison
from .studies import study_figures
from .template import render


def write_page(folder: Path) -> Path:
    """Write ``reproduction.html`` from the tables of a folder; returns the page's path.

    Raises:
        UserError: the tables cannot be read, or hold nothing.
    """
    plan, rows = kept(folder), list(Table(folder / "reproduction.csv", Row).rows.values())
    costs = list(Table(folder / "costs.csv", Cost).rows.values())
    if not rows:
        raise UserError(f"{folder} holds no experiment: its reproduction.csv lists no model.")
    families = {name: list(group) for name, group in itertools.groupby(rows, lambda row: row.family)}
    studies = {name: study_figures(folder, mine) for name, mine in families.items()}
    page = folder / "reproduction.html"
    html = render(
        "reproduction.html",
        {f"front-{name}": comparison(mine) for name, mine in families.items()}
        | {f"{study}-{name}": figure for name, drawn in studies.items() for study, figure in drawn.items()},
        plan=plan,
        families={name: (mine, standings(mine)) for name, mine in families.items()},
        methods=list(METHODS),
        costs={(cost.family, cost.method): cost for cost in costs},
        worst_f2=WORST_F2,
        studies={name: list(drawn) for name, drawn in studies.items()},
    )
    write_atomically(page, html.encode())
    return page
