"""Call the command line in the test process."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from unlearn_ext.cli.app import app


def call(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command; return its exit code and its output as one line."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", **environment})
    return result.exit_code, " ".join((result.stdout + result.stderr).split())
