"""The trained store of tests/evaluation."""

from tests.evaluation.conftest import store_copy, trained

__all__ = ["store_copy", "trained"]
