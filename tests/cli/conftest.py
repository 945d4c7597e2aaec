"""A trained store, shared by the tests that only read it."""

from pathlib import Path

import pytest

from tests.runs import three_seeds


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the short run was trained with three seeds; do not change what is in it."""
    return three_seeds(tmp_path_factory.getbasetemp())
