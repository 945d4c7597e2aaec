"""A run of folds as one member: its rows, what it is compared on, what leaves."""

import re
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.special import softmax

import lit_cnn
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.evaluation.comparison import Comparison, outputs_on
from lit_cnn.evaluation.fold_sets import FoldSet, common_images, load
from lit_cnn.evaluation.leaderboard import Leaderboard
from lit_cnn.evaluation.members import find_members
from lit_cnn.evaluation.pair import Pair
from lit_cnn.evaluation.predict import Member
from lit_cnn.evaluation.predictor import Prediction, Predictor
from lit_cnn.tracking import queries, resolve_store
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, OutOfFold, read_out_of_fold
from lit_cnn.training.weights import checkpoint_of_run
from tests.cli.test_folds import OPTIONS
from tests.runs import fold_sets, tracked_runs


@pytest.fixture
def sets(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> dict[str, str]:
    """Ids of the runs in a copy of the store: `3` and `2` of folds, `plain` without."""
    shutil.copytree(fold_sets(tmp_path_factory.getbasetemp()) / "mlruns", tmp_path / "mlruns")
    (plain,) = [run.run_id for run in tracked_runs(tmp_path) if run.name.endswith("_plain")]
    return {"plain": plain, **{run.tags["num_folds"]: run.run_id for run in tracked_runs(tmp_path, "folds")}}


def _out_of_fold(run_id: str) -> OutOfFold:
    store = resolve_store(None)
    (run,) = queries.find_runs(store, [run_id])
    found = read_out_of_fold(queries.download_artifact(store, run, f"{FOLDER}/{LOGITS}"))
    assert found is not None
    return found


def _members(*names: str) -> list[Member]:
    store = resolve_store(None)
    return [load(store, run, ["test", "val"]) for run in find_members(store, names)]


def test_out_of_fold_stands_for_val_and_the_mean_of_all_networks_for_test(sets: dict[str, str], tmp_path: Path) -> None:
    (member,) = _members(sets["2"])
    assert isinstance(member, FoldSet) and (member.num_networks, member.num_rounds) == (4, 2)
    paths = member.data.image_set.paths
    comparison = Comparison([1, 10], tmp_path / "logits")
    for split in ("val", "test"):
        (images,) = common_images([member], split)
        found = outputs_on([member], split, comparison)
        for count in (1, 10):
            (block,) = found[count].blocks()
            total, seen = np.zeros((len(images), 10)), np.zeros(len(images))
            for network in member.networks:
                (alone,) = [common_images([network], split)[0]]
                (own,) = outputs_on([network], split, comparison)[count].blocks()
                places = np.searchsorted([paths[index] for index in images], [paths[index] for index in alone])
                total[places] += own.probabilities[0]
                seen[places] += 1
            assert set(seen) == {2 if split == "val" else 4}
            np.testing.assert_allclose(block.probabilities[0], total / seen[:, None], atol=1e-12)
            assert block.logits is not None
            np.testing.assert_allclose(softmax(block.logits[0], axis=1), block.probabilities[0], atol=1e-12)
        assert len(images) == {"val": 1438, "test": 359}[split]


def test_an_ensemble_of_sets_and_plain_runs_takes_the_plain_runs_val(
    sets: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = lit_cnn.ensemble([sets["3"], sets["2"]], views=[1], combine="greedy", calibration=True)
    rows = {line.row.run_id: line.row for line in table.lines if line.row.kind == "member"}
    counts = rows[sets["3"]].val_counts
    assert counts is not None and counts[1] == 1438
    oof = queries.find_runs(resolve_store(None), [sets["3"]])[0].metrics["oof/acc"]
    assert rows[sets["3"]].val_accuracy == pytest.approx(oof)
    assert counts[0] / 1438 == pytest.approx(oof, abs=0.01)
    passes = {row.run_id: row.forward_passes for row in rows.values()}
    assert passes == {sets["3"]: 3, sets["2"]: 4}
    cost = {row.run_id: row.cost.parameters for row in rows.values() if row.cost is not None}
    assert cost[sets["2"]] / 4 == cost[sets["3"]] / 3 == 61706
    mixed = lit_cnn.ensemble([sets["3"], sets["plain"]], views=[1], combine="greedy")
    assert {line.row.val_counts[1] for line in mixed.lines if line.row.val_counts} == {143}
    with pytest.raises(UsageError, match="only 1 runs match"):
        lit_cnn.ensemble(experiment="digits", top_k=2)
    assert "left out: 2 runs of folds, validated on other images" in capsys.readouterr().err
    # What they have on val is of the same images, and so is the choice of the reference.
    data = ImageDataModule(**OPTIONS)
    own = {data.image_set.paths[index] for index in data.splits.val}
    found = _out_of_fold(sets["3"])
    inside = [path in own for path in found.paths]
    of_row = {line.row.run_id: line.row.val_accuracy for line in mixed.lines if line.row.kind == "member"}
    assert sum(inside) == 143 and of_row[sets["3"]] == pytest.approx(found.correct[inside].mean())
    assert mixed.reference.val_accuracy == max(filter(None, of_row.values()))
    names = {line.row.name for line in mixed.lines if line.row.kind == "member"}
    assert names == {"3 folds · seed 0", "plain · seed 0"} or names == {"3 folds", "plain"}
    model = lit_cnn.export(mixed.run, "ensemble", "torch") if mixed.run is not None else None
    assert model is not None and len(model.members) in (1, 3, 4)


def test_sets_are_compared_on_all_that_is_not_test(sets: dict[str, str]) -> None:
    pair = lit_cnn.compare([sets["3"], sets["2"]], split="val")
    assert isinstance(pair, Pair) and "1,438 val images" in pair.answer()
    mixed = lit_cnn.compare([sets["plain"], sets["3"]], split="val")
    assert isinstance(mixed, Pair) and "143 val images" in mixed.answer()
    assert "359 test images" in lit_cnn.compare([sets["plain"], sets["3"]]).answer()
    board = lit_cnn.compare(experiment="digits")
    assert isinstance(board, Leaderboard)
    assert {standing.group.run_ids for standing in board.standings} == {(run_id,) for run_id in sets.values()}
    board = lit_cnn.compare(experiment="digits", split="val", filter="tags.kind = 'folds'")
    assert isinstance(board, Leaderboard)
    assert all(standing.group.correct is not None for standing in board.standings)
    board = lit_cnn.compare(experiment="digits", split="val")
    assert isinstance(board, Leaderboard) and "validated on other images" in board.to_html()
    assert [standing.group.run_ids for standing in board.standings] == [(sets["plain"],)]
    with pytest.raises(UsageError, match="were not trained on the same images"):
        lit_cnn.soup([sets["3"], sets["plain"]])


def test_what_leaves_is_the_mean_of_the_networks(sets: dict[str, str], tmp_path: Path) -> None:
    card = lit_cnn.export(sets["3"], "model", "torch")
    assert [member["weight"] for member in card.members] == pytest.approx([1 / 3] * 3)
    store = resolve_store(None)
    (run,) = queries.find_runs(store, [sets["3"]])
    networks = [lit_cnn.load(run_id) for run_id in run.tags["members"].split()]
    image = np.asarray(_members(sets["3"])[0].data.image_set.images[0])
    cv2.imwrite("digit.png", image)
    mean = np.mean([_predicted(each) for each in networks], axis=0)
    for source in (sets["3"], Path("model")):
        np.testing.assert_allclose(_predicted(lit_cnn.load(source)), mean, atol=1e-5)
    with pytest.raises(UsageError, match=r"is no single network; give one of its runs, such as [0-9a-f]{8} or "):
        checkpoint_of_run(store, sets["3"])
    with pytest.raises(UsageError, match=re.escape("has not come to its end")):
        _stopped(tmp_path, sets["3"])
        lit_cnn.load(sets["3"])


def _predicted(network: Predictor) -> list[float]:
    found = network.predict("digit.png")
    assert isinstance(found, Prediction)
    return list(found.probabilities.values())


def _stopped(folder: Path, run_id: str) -> None:
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as connection:
        connection.execute("DELETE FROM tags WHERE run_uuid = ? AND key = 'members'", (run_id,))
