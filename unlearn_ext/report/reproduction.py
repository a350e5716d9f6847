"""The report page of an experiment with baselines."""

from __future__ import annotations

import itertools
from pathlib import Path

from .._utils.atomic_io import write_text
from ..baselines import METHODS
from ..errors import UserError
from ..reproduction.compare import REACHED, SHARES, STRICT_F2, VIEWS, WORST_F2, standings, verdicts
from ..reproduction.plan import kept
from ..reproduction.quality import FILE, Quality
from ..reproduction.search import FILE as SEARCH
from ..reproduction.search import Tried, tunings
from ..reproduction.table import Cost, ModelRow, Table
from .comparison import comparison
from .family import section
from .hypervolumes import hypervolumes
from .saving import save_figures
from .strip import strip_figure
from .studies import infill_strip, readers, study_figures
from .template import render

__all__ = ["write_page"]


def write_page(folder: Path) -> Path:
    """Write ``reproduction.html`` and its figures from the tables in a folder; return the path of the page.

    Raises:
        UserError: the tables or the pictures cannot be read, or the main table is empty.
    """
    plan, rows = kept(folder), list(Table(folder / "reproduction.csv", ModelRow).rows.values())
    costs = list(Table(folder / "costs.csv", Cost).rows.values())
    tried = Table(folder / SEARCH, Tried)
    judged = list(Table(folder / FILE, Quality).rows.values())
    if not rows:
        raise UserError(
            f"{folder} contains no results: its reproduction.csv lists no model. Run `unlearn-ext reproduce` first."
        )
    families = {name: list(group) for name, group in itertools.groupby(rows, lambda row: row.family)}
    stand = {name: standings(mine) for name, mine in families.items()}
    sections = {name: section(folder, mine, judged) for name, mine in families.items()}
    studies = {name: study_figures(folder, mine) for name, mine in families.items()}
    plots = {f"front-{name}": comparison(mine) for name, mine in families.items()}
    plots |= {f"hypervolume-{name}": hypervolumes(mine) for name, mine in stand.items()}
    plots |= {f"tsne-{name}": shown.map for name, shown in sections.items() if shown.map is not None}
    plots |= {f"{study}-{name}": figure for name, drawn in studies.items() for study, figure in drawn.items()}
    strips = {f"pictures-{name}": shown.gallery for name, shown in sections.items()}
    strips |= {f"strip-{name}": shown.strip for name, shown in sections.items()}
    strips |= {f"infill-{name}": infill_strip(folder, mine) for name, mine in families.items()}
    save_figures(folder / "figures", plots | {name: strip_figure(mine) for name, mine in strips.items() if mine})
    page = folder / "reproduction.html"
    html = render(
        "reproduction.html",
        plots,
        plan=plan,
        families={name: (mine, stand[name]) for name, mine in families.items()},
        sections=sections,
        methods=list(METHODS),
        costs={(cost.family, cost.method): cost for cost in costs},
        tried={name: [row for row in tried.rows.values() if row.family == name] for name in families},
        tuned={name: tunings(tried, name) for name in families},
        verdicts={name: {kind: verdicts(mine, kind) for kind in VIEWS} for name, mine in families.items()},
        shares=SHARES,
        corners=(STRICT_F2, WORST_F2),
        reached=REACHED,
        readers={name: readers(folder, name) for name in families},
        studies={name: list(drawn) for name, drawn in studies.items()},
        infill={name: strips[f"infill-{name}"] for name in families},
    )
    write_text(page, html)
    return page
