"""A mistake reads in Python as in Python, and on the command line as there."""

import pickle

import pytest

from lit_cnn.cli.spelling import spelling_of
from lit_cnn.core.errors import UsageError, at_least


@pytest.mark.parametrize(
    ("error", "in_python", "of_fit", "of_ensemble"),
    [
        (
            UsageError("batch_size", 0, "give a whole number of at least 1"),
            "batch_size=0: give a whole number of at least 1",
            "--data.batch_size 0: give a whole number of at least 1",
            "--batch_size 0: give a whole number of at least 1",
        ),
        (
            UsageError("arch", "resnet81", "no such architecture", "nearest: resnet18"),
            "arch=resnet81: no such architecture; nearest: resnet18",
            "--model.arch resnet81: no such architecture; nearest: resnet18",
            "--arch resnet81: no such architecture; nearest: resnet18",
        ),
        (
            UsageError("weights", None, "take gray images", "give `in_channels=1`, or `find_batch_size=True`"),
            "weights: take gray images; give in_channels=1, or find_batch_size=True",
            "--model.weights: take gray images; give --data.in_channels 1, or --find_batch_size true",
            "--weights: take gray images; give --in_channels 1, or --find_batch_size",
        ),
        (UsageError(None, "a.png", "cannot be decoded"), *["a.png: cannot be decoded"] * 3),
        (
            UsageError("root", "a.csv", "has no label", "name it: `columns.label=NAME`"),
            "root=a.csv: has no label; name it: columns.label=NAME",
            "--data.root a.csv: has no label; name it: --data.columns.label NAME",
            "--root a.csv: has no label; name it: --columns.label NAME",
        ),
        (UsageError("run", "ab12", "is not there"), *["run ab12: is not there"] * 3),
        # An address of MLflow's, and no option of ours.
        (UsageError(None, None, "no tags.`arch` there"), *["no tags.`arch` there"] * 3),
        (UsageError("seed", [1, 2.5], "no"), "seed=1 2.5: no", "--seed_everything 1 2.5: no", "--seed 1 2.5: no"),
    ],
)
def test_a_mistake_is_spelt_where_it_is_made(error: UsageError, in_python: str, of_fit: str, of_ensemble: str) -> None:
    assert str(error) == in_python
    assert error.in_words(spelling_of("fit")) == of_fit
    assert error.in_words(spelling_of("ensemble")) == of_ensemble
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.option, again.value, again.reason) == (in_python, error.option, error.value, error.reason)


def test_numbers_that_are_too_small_are_refused_by_name() -> None:
    at_least(1, views=None, batch_size=1)
    with pytest.raises(UsageError, match=r"^num_draws=0: give a whole number of at least 1$"):
        at_least(1, num_images=3, num_draws=0)


def test_one_that_torch_makes_anew_keeps_its_line() -> None:
    assert str(UsageError(message="Caught UsageError: a.png: cannot be decoded")).endswith("a.png: cannot be decoded")
