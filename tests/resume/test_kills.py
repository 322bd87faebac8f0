"""Killed with signal 9 in every kind of stage and continued: the end is that of a run without a cut, byte for byte."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been() -> None:
    """I37: the small form of the command that does so for all recipes; ten stages of nine kinds."""
    command = [sys.executable, str(COMMAND), "--recipes", "kinds", "--kills", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) kills in \d+ lives", done.stdout, re.MULTILINE)
    assert found and int(found[1]) >= 10, done.stdout
    assert "0 differences from runs without a cut" in done.stdout
