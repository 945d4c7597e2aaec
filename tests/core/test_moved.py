"""Modules are found by the names that they had in 0.1, once each."""

import importlib
import sys

import pytest

from lit_cnn.core.moved import new_name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lit_cnn.pca_color", "lit_cnn.data.pca_color"),
        ("lit_cnn.classifier", "lit_cnn.training.classifier"),
        ("lit_cnn.datasets", "lit_cnn.data.sources"),
        ("lit_cnn.datasets.folders", "lit_cnn.data.sources.folders"),
        ("lit_cnn.datasets.decoding", "lit_cnn.data.decoding"),
        ("lit_cnn.exported", "lit_cnn.portable"),
        ("lit_cnn.callbacks", "lit_cnn.training.callbacks"),
        ("lit_cnn.averaging", "lit_cnn.training.callbacks.averaging"),
        ("lit_cnn.fit_progress", "lit_cnn.training.callbacks.fit_progress"),
        ("lit_cnn.snapshots", "lit_cnn.training.callbacks.snapshots"),
        ("lit_cnn.whitening", "lit_cnn.training.callbacks.whitening"),
        ("lit_cnn.cli.resume", "lit_cnn.training.resume"),
    ],
)
def test_an_old_name_gives_the_module_of_today(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)  # another test may have asked for it
    with pytest.warns(FutureWarning, match=rf"{old} is now {new}"):
        moved = importlib.import_module(old)
    assert moved is importlib.import_module(new)
    assert (moved.__name__, moved.__spec__ is not None and moved.__spec__.name) == (new, new)


@pytest.mark.parametrize("name", ["lit_cnn.cli.preview", "lit_cnn.training", "lit_cnn.nothing", "other.files"])
def test_other_names_are_left_alone(name: str) -> None:
    assert new_name(name) is None
