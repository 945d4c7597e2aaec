"""`lit-cnn fit --folds`: the runs, what they say of images that they were not trained on, and what they come to."""

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.load import load_classifier
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, OutOfFold, read_out_of_fold
from tests.cli.test_resume import WATCHED, background_fit
from tests.faults import wait_until
from tests.forks import Forked
from tests.runs import SHORT_OPTIONS, TrackedRun, fit, fold_sets, tracked_runs

OPTIONS: dict[str, Any] = {name[5:]: value for name, value in SHORT_OPTIONS.items() if name.startswith("data.")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fold_sets(tmp_path_factory.getbasetemp())


def _set(folder: Path, num_folds: int) -> tuple[TrackedRun, list[TrackedRun], OutOfFold]:
    (parent,) = [run for run in tracked_runs(folder, "folds") if run.tags["num_folds"] == str(num_folds)]
    children = [run for run in tracked_runs(folder, "fit") if run.tags.get("mlflow.parentRunId") == parent.run_id]
    found = read_out_of_fold(parent.artifacts / FOLDER / LOGITS)
    assert found is not None and parent.status == "FINISHED"
    return parent, children, found


@pytest.mark.parametrize("num_folds", [3, 2])
def test_every_image_but_test_is_predicted_by_the_network_that_has_not_seen_it(trained: Path, num_folds: int) -> None:
    parent, children, found = _set(trained, num_folds)
    num_rounds = len(children) // num_folds
    assert [run.tags["fold"] for run in children] == [*"012"[:num_folds]] * num_rounds
    plain = ImageDataModule(**OPTIONS)
    of_path = {path: index for index, path in enumerate(plain.image_set.paths)}
    places = np.array([of_path[path] for path in found.paths])
    whole = np.setdiff1d(np.arange(1797), plain.splits.test)
    np.testing.assert_array_equal(np.sort(places), whole)
    np.testing.assert_array_equal(found.targets, plain.image_set.labels[places])
    assert found.logits.shape == (num_rounds, 1438, 10)
    for place, run in enumerate(children):
        number, fold = divmod(place, num_folds)
        data = ImageDataModule(
            **OPTIONS, num_folds=num_folds, fold=fold, fold_seed=[None, [3, 4][number]][num_folds == 2]
        )
        assert run.tags["val_split_digest"] == data.digests["val"]
        assert run.tags["test_split_digest"] == parent.tags["test_split_digest"] == plain.digests["test"]
        own = found.folds[number] == fold
        np.testing.assert_array_equal(np.sort(places[own]), data.splits.val)
        # The kept logits are those of the run's best checkpoint.
        model, _ = load_classifier(run.artifacts / "checkpoints" / "best.ckpt")
        labels = np.concatenate([model.eval()(images).argmax(1) for images, _ in data.val_dataloader()])
        by_place = dict(zip(places[own], found.logits[number, own].argmax(1), strict=True))
        same = [by_place[index] == label for index, label in zip(data.splits.val, labels, strict=True)]
        assert np.mean(same) > 0.98  # the run computes in bf16 where the processor can
        assert found.correct_of_rounds[number, own].mean() == pytest.approx(run.metrics["best/val/acc"], abs=1e-6)
    metrics = parent.metrics
    assert metrics["oof/acc"] == pytest.approx(found.correct.mean())
    for name in ("best/val/acc", "test/acc"):
        assert metrics[name] == pytest.approx(np.mean([run.metrics[name] for run in children]))
    assert metrics["oof/optimism"] == pytest.approx(
        found.correct_of_rounds.mean() - metrics["oof/acc_nested"], abs=1e-6
    )
    assert parent.tags["val_split_digest"] == plain.image_set.digest_of(whole)
    right = f"Out of fold, {found.correct.sum():,} of 1,438 images right"
    by = " by the mean of the 2 networks that were not trained on them" if num_rounds > 1 else ""
    assert parent.tags["mlflow.note.content"].startswith(f"{right}{by}: {100 * found.correct.mean():.1f} %")
    words = {3: "3 folds", 2: "2 folds cut 2 times"}[num_folds]
    assert parent.name.endswith(f" ({words})") and parent.tags["label"].endswith(f" · {words}")


def test_the_nested_estimate_takes_each_folds_epoch_from_the_others(trained: Path) -> None:
    parent, children, found = _set(trained, 3)
    curves = np.array([[value for _, value in run.history["val/acc"]] for run in children])
    sizes = np.bincount(found.folds[0])
    nested = [own[(curves.sum(0) - own).argmax()] for own in curves]
    assert parent.metrics["oof/acc_nested"] == pytest.approx(np.average(nested, weights=sizes))
    best = np.average(curves.max(1), weights=sizes)
    assert parent.metrics["oof/optimism"] == pytest.approx(best - np.average(nested, weights=sizes), abs=1e-9)


@pytest.mark.usefixtures("empty_store")
def test_a_stopped_set_goes_on_in_the_same_parent_and_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_cnn.training.folds._LINES_APART", 1e9)  # however slow this machine is now
    folds = ("--folds", "2", "--recipe=stopped")
    with background_fit(tmp_path, *WATCHED, *folds) as process:
        _wait_for_second(process, tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert fit(*WATCHED, *folds, "--resume", "auto") == 0
    (parent,) = tracked_runs(tmp_path, "folds")
    first, second = tracked_runs(tmp_path, "fit")
    assert parent.status == first.status == second.status == "FINISHED"
    assert [run.tags["mlflow.parentRunId"] for run in (first, second)] == [parent.run_id] * 2
    printed = capsys.readouterr()
    assert re.search(r"resuming lenet5_scratch_digits_stopped \(seed 0, fold 1 of 2\)", printed.err)
    # A line a fold: those of quick epochs, and where each fold's report is, are left out.
    assert "epoch " not in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("fold ")]
    assert [line.partition(":")[0] for line in lines] == ["fold 0", "fold 1"]
    assert all(re.search(r": [\d.]+ % of its images right, test [\d.]+ %, run [0-9a-f]{8}$", line) for line in lines)
    assert printed.out.count("Report: ") == 1
    assert 0 < parent.metrics["oof/acc"] < 1


def _wait_for_second(process: Forked, folder: Path) -> None:
    def second_trains() -> bool:
        return len(list(folder.glob("mlruns/journal/*/last.ckpt"))) == 2

    wait_until(second_trains, timeout=60)
    assert process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--folds 1", "--folds 1: give a whole number of at least 2"),
        ("--folds many", "--folds many: give a whole number"),
        ("--split_seeds 0 1", "--split_seeds 0 1: cuts folds anew; give --folds 5 too"),
        ("--folds 5 --data.fold 2", "--data.fold 2: is chosen by --folds"),
        ("--folds 5 --seeds 0 --seed_everything 1", "--folds: goes with neither --ckpt_path nor --seed_everything"),
        ("--folds 200", "--folds 200: class 0 has 142 images beside the test images: too few; give at most 139"),
        ("--folds 3 --data.split_seed seed", "--data.split_seed seed: each seed would have another test"),
        ("--folds 3 --trainer.devices 2", "--folds: one device a run"),
        ("--folds 3 --split_seeds 0 --data.fold_seed 4", "--split_seeds: goes with no --data.fold_seed"),
        ("--folds 3 --trainer.limit_val_batches 1", "--trainer.limit_val_batches 1: the folds are to predict every"),
        ("--folds 3 --trainer.fast_dev_run true", "--trainer.fast_dev_run true: the folds are to predict every image"),
        ("--data.num_folds 5", "--data.num_folds 5: give --data.fold too: 0 to 4"),
    ],
)
def test_what_cannot_be_folds_is_told_before_anything_starts(
    arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*arguments.split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert words.partition("; give at most")[0] in line
    assert not list(tmp_path.glob("mlruns/journal/*"))
