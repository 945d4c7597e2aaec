"""A trained store, shared by the tests that only read it, and an empty one."""

from pathlib import Path

import pytest

from tests.runs import copy_empty_store, three_seeds


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the short run was trained with three seeds; do not change what is in it."""
    return three_seeds(tmp_path_factory.getbasetemp())


@pytest.fixture
def empty_store(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An MLflow store without runs in the test's folder."""
    copy_empty_store(tmp_path_factory.getbasetemp(), tmp_path)
