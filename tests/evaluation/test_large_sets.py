"""Many images: logits in parts, outputs a few images at a time, and the same table as of all at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_cnn.evaluation import outputs, view_logits
from lit_cnn.evaluation.calibration import fitting_places
from lit_cnn.evaluation.comparison import Comparison, evaluate
from lit_cnn.evaluation.logits_file import write_logits
from lit_cnn.evaluation.members import find_members
from lit_cnn.evaluation.predict import Loading, Member, load_network
from lit_cnn.evaluation.view_logits import are_stored, predict_views
from lit_cnn.tracking import resolve_store
from lit_cnn.training.classifier import LitClassifier
from tests.runs import TrackedRun, tracked_runs

HERE, LOADING = Path("mlruns/predictions"), Loading(batch_size=50, num_workers=0)
A_PART = 4 * 10 * 100  # bytes of the logits of a hundred digits


@pytest.fixture
def runs(store_copy: Path) -> list[TrackedRun]:
    return tracked_runs(store_copy, "fit")


def member_of(run: TrackedRun) -> Member:
    store = resolve_store()
    (found,) = find_members(store, [run.run_id])
    return load_network(store, found, ["test"])


@pytest.fixture
def num_forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that went through the network, pass by pass."""
    seen: list[int] = []
    forward = LitClassifier.forward

    def counted(self: LitClassifier, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(LitClassifier, "forward", counted)
    return seen


def test_an_interrupted_evaluation_goes_on_where_it_was(
    runs: list[TrackedRun], num_forwarded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_of(runs[0])
    test = member.data.splits["test"]
    whole = predict_views(member_of(runs[1]), test, [1, 2], HERE, LOADING)
    assert not list(HERE.glob("*-*.safetensors"))
    expected = predict_views(member, test[:250], [1, 2], HERE, LOADING)
    monkeypatch.setattr(view_logits, "_MOST_IN_A_PART", A_PART)
    num_forwarded.clear()
    forward_batches = view_logits.forward_batches

    def interrupted(*arguments: Any) -> Iterator[torch.Tensor]:
        for number, batch in enumerate(forward_batches(*arguments)):
            if number == 12:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(view_logits, "forward_batches", interrupted)
        predict_views(member, test[:230], [1, 2], HERE, LOADING)
    seen = sum(num_forwarded)
    parts = {file.name.rpartition("-")[2] for file in HERE.glob("*-*.safetensors")}
    assert parts == {"0.safetensors"} and not are_stored(member, test[:230], 1, HERE)
    kept_with_run = Path("mlruns/artifacts/digits", runs[0].run_id, "artifacts/logits")
    assert len(list(kept_with_run.glob("*-0.safetensors"))) == 2

    found = predict_views(member, test[:230], [1, 2], HERE, LOADING)
    assert sum(num_forwarded) - seen == 2 * 130
    for count in (1, 2):
        np.testing.assert_allclose(found[count], expected[count][:, :230], atol=1e-4)
    assert are_stored(member, test[:230], 2, HERE) and not list(HERE.glob("*.here_only"))

    (damaged, *_) = HERE.glob("*-100.safetensors")
    kept = kept_with_run / damaged.name
    content = damaged.read_bytes()
    for file in (damaged, kept):
        file.unlink()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    num_forwarded.clear()
    again = predict_views(member, test[:230], [1, 2], HERE, LOADING)
    assert sum(num_forwarded) == 100 and np.allclose(again[2], found[2], atol=1e-4)
    # What an earlier version wrote as one file is found though there would be parts now.
    num_forwarded.clear()
    assert np.array_equal(predict_views(member_of(runs[1]), test, [1, 2], HERE, LOADING)[2], whole[2])
    assert not num_forwarded


def test_a_few_images_at_a_time_and_halves_give_the_table_of_all_at_once_in_float32(
    runs: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = resolve_store()
    found = find_members(store, [run.run_id for run in runs])
    members = [load_network(store, run, ["test", "val"]) for run in found]

    def numbers(combine: str, folder: Path = HERE) -> dict[str, Any]:
        table = evaluate(members, Comparison([2], folder, combine, calibration=True, loading=LOADING))
        assert table.predictions is not None
        told = json.loads(table.to_json())
        told["labels"] = table.predictions.labels.tolist()
        told["correct"] = [line.row.correct.tolist() for line in table.lines]
        told["confidence"] = table.predictions.confidence.tolist()
        return dict(told)

    def assert_close(one: dict[str, Any], other: dict[str, Any], rel: float) -> None:
        assert (one["labels"], one["correct"]) == (other["labels"], other["correct"])
        for row, other_row in zip(one["rows"], other["rows"], strict=True):
            for name, value in row.items():
                expected = pytest.approx(other_row[name], rel=rel) if isinstance(value, float) else other_row[name]
                assert value == expected, name

    at_once = {combine: numbers(combine) for combine in ("greedy", "logits", "vote")}
    sizes: list[int] = []
    read = outputs.KeptOutputs.blocks

    def counted(self: outputs.KeptOutputs) -> Iterator[Any]:
        for block in read(self):
            sizes.append(len(block.targets))
            yield block

    monkeypatch.setattr(outputs, "_MOST_OUTPUTS", 8 * len(members) * 10 * 50)
    monkeypatch.setattr(outputs.KeptOutputs, "blocks", counted)
    assert {combine: numbers(combine) for combine in at_once} == at_once  # to the last digit
    assert max(sizes) == 50
    monkeypatch.setattr(outputs, "_MOST_KEPT", 0)  # val goes into a file, as float32
    for combine in ("greedy", "logits"):
        assert_close(numbers(combine), at_once[combine], rel=1e-4)
    assert not list(HERE.glob(".*.tmp"))
    monkeypatch.setattr(view_logits, "write_logits", lambda file, logits, _: write_logits(file, logits, exact=False))
    assert_close(numbers("greedy", Path("halves")), at_once["greedy"], rel=2e-3)
    stored = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (Path("halves"), HERE)]
    assert stored[0] < 0.75 * stored[1]


def test_a_temperature_is_fitted_on_so_many_images_of_every_class() -> None:
    targets = np.random.default_rng(0).integers(0, 1000, 30_000)
    assert np.array_equal(fitting_places(targets, 10), np.arange(30_000))
    places = fitting_places(targets, 1000)
    assert len(places) == len(set(places.tolist())) == 10_000 and (np.diff(places) > 0).all()
    counts, of_all = np.bincount(targets[places], minlength=1000), np.bincount(targets, minlength=1000)
    assert np.abs(counts - of_all / 3).max() < 2
    assert len(fitting_places(targets, 1_000_000)) == 1000
