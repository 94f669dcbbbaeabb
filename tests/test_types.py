"""The type checker has nothing to say."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.xdist_group("types")  # begins first: it is one long process
def test_types_are_right():
    checked = subprocess.run(
        [sys.executable, "-m", "mypy"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}"
