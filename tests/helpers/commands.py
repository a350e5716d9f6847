"""Call the command line within the test process."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from unlearn_ext.cli.app import app


def call(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and everything said, as one line of words."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", **environment})
    return result.exit_code, " ".join((result.stdout + result.stderr).split())
