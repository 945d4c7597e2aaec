"""A trained store: one to read, and copies to change."""

import shutil
from pathlib import Path

import pytest

from tests.runs import three_seeds


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the short run was trained with three seeds; do not change what is in it."""
    return three_seeds(tmp_path_factory.getbasetemp())


@pytest.fixture
def store_copy(trained: Path, tmp_path: Path) -> Path:
    """The test's folder, with a copy of the trained store."""
    shutil.copytree(trained / "mlruns", tmp_path / "mlruns")
    return tmp_path
