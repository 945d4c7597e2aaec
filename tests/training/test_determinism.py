"""`make determinism`, with fewer runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.determinism import PRECISIONS


@pytest.mark.slow  # a minute: four trainings
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_with_workers_ends_with_the_weights_of_one_without(precision: str, repo_root: Path) -> None:
    command = [sys.executable, "-m", "tests.determinism", "--num_workers", "2", "--precision", precision]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "yes, bit for bit" in done.stdout and "NO" not in done.stdout.split()
