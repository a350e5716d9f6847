"""Draws docs/front.png and docs/strip.png from the results of `make demo` in runs/demo."""

import shutil
from pathlib import Path

from unlearn_ext.report.strip import REFERENCES, strip_figure, strip_rows
from unlearn_ext.unlearning.run_folder import read_run

DOCS = Path(__file__).parent
RUN = DOCS.parent / "runs" / "demo"

shutil.copy(RUN / "figures" / "front.png", DOCS / "front.png")
run = read_run(RUN)
rows = strip_rows(run.points, run.samples)
# All models would not fit on a screen: the two ends, and every second model between them.
shown = [row for row in rows if row.name in REFERENCES]
models = [row for row in rows if row.name not in REFERENCES]
figure = strip_figure([*shown, *models[:-1:2], models[-1]])
figure.savefig(
    DOCS / "strip.png", dpi=90, facecolor="white", bbox_inches="tight", pad_inches=0.1
)
