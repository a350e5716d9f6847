"""What a run looks like to the people who have to decide on it.

`write_report` needs the extra `report`: `pip install 'unlearn-ext[report]'`.
"""

from __future__ import annotations

from pathlib import Path


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html`, one file that needs no other, and `figures/*.png` into the run's folder."""
    from unlearn_ext.errors import UserError

    try:
        from unlearn_ext.report.page import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("unlearn_ext"):
            raise
        raise UserError(f"The report needs {error.name}: pip install 'unlearn-ext[report]'.") from error
    return write_page(run_folder)
