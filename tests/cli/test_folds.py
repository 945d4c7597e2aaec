"""`lit-cnn fit --folds`: the runs, what they say of images that they were not trained on, and what they come to."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.load import load_classifier
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, read_out_of_fold
from tests.cli.test_resume import WATCHED, background_fit
from tests.faults import wait_until
from tests.forks import Forked
from tests.runs import SHORT_OPTIONS, TrackedRun, fit, three_folds, tracked_runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_folds(tmp_path_factory.getbasetemp())


def _set(folder: Path, num_folds: int) -> tuple[TrackedRun, list[TrackedRun]]:
    (parent,) = [run for run in tracked_runs(folder, "folds") if run.tags["num_folds"] == str(num_folds)]
    children = [run for run in tracked_runs(folder, "fit") if run.tags.get("mlflow.parentRunId") == parent.run_id]
    return parent, children


def test_every_image_but_test_is_predicted_by_the_network_that_has_not_seen_it(trained: Path) -> None:
    parent, children = _set(trained, 3)
    assert [(run.tags["fold"], run.tags["seed"]) for run in children] == [(f, s) for s in "01" for f in "012"]
    assert parent.name == "lenet5_scratch_digits (3 folds, 2 seeds)" and parent.status == "FINISHED"
    assert (
        parent.tags["label"]
        == "lenet5 · scratch · 32 px · 128 training images · batch 16 · 2 epochs · 3 folds, 2 seeds"
    )
    found = read_out_of_fold(parent.artifacts / FOLDER / LOGITS)
    assert found is not None and found.logits.shape == (2, 1438, 10)
    options = {name[5:]: value for name, value in SHORT_OPTIONS.items() if name.startswith("data.")}
    plain = ImageDataModule(**options)
    of_path = {path: index for index, path in enumerate(plain.image_set.paths)}
    places = np.array([of_path[path] for path in found.paths])
    whole = np.setdiff1d(np.arange(1797), plain.splits.test)
    np.testing.assert_array_equal(np.sort(places), whole)
    np.testing.assert_array_equal(found.targets, plain.image_set.labels[places])
    for run in children:
        seed, fold = int(run.tags["seed"]), int(run.tags["fold"])
        data = ImageDataModule(**options, num_folds=3, fold=fold)
        assert (
            run.tags["val_split_digest"] == data.digests["val"]
            and run.tags["test_split_digest"] == plain.digests["test"]
        )
        own = found.folds[seed] == fold
        np.testing.assert_array_equal(np.sort(places[own]), data.splits.val)
        assert not np.isin(places[own], data.splits.train).any()
        # The kept logits are those of the run's best checkpoint.
        model, _ = load_classifier(run.artifacts / "checkpoints" / "best.ckpt")
        labels = np.concatenate([model.eval()(images).argmax(1) for images, _ in data.val_dataloader()])
        by_path = dict(zip(places[own], found.logits[seed, own].argmax(1), strict=True))
        same = [by_path[index] == label for index, label in zip(data.splits.val, labels, strict=True)]
        assert np.mean(same) > 0.99  # the run computes in bf16 where the processor can
        right = np.mean(found.correct_of_rounds[seed, own])
        assert right == pytest.approx(run.metrics["best/val/acc"], abs=1e-6)
    metrics = parent.metrics
    assert metrics["oof/acc"] == pytest.approx(found.correct.mean())
    for name in ("best/val/acc", "test/acc"):
        assert metrics[name] == pytest.approx(np.mean([run.metrics[name] for run in children]))
    assert metrics["oof/optimism"] == pytest.approx(found.correct_of_rounds.mean() - metrics["oof/acc_nested"])
    assert metrics["oof/optimism"] >= 0  # the best epoch of each fold is at least as good there as any other
    assert parent.tags["val_split_digest"] == plain.image_set.digest_of(whole)
    right = round(metrics["oof/acc"] * 1438)
    assert parent.tags["mlflow.note.content"].startswith(
        f"Out of fold, {right:,} of 1,438 images right by the mean of the 2"
    )


def test_the_nested_estimate_takes_each_folds_epoch_from_the_others(trained: Path) -> None:
    parent, children = _set(trained, 4)
    curves = np.array([[value for _, value in run.history["val/acc"]] for run in children])
    sizes = np.array([len(ImageDataModule(num_folds=4, fold=fold, fold_seed=1).splits.val) for fold in range(4)])
    nested = (
        sum(size * own[(curves.sum(0) - own).argmax()] for size, own in zip(sizes, curves, strict=True)) / sizes.sum()
    )
    assert parent.metrics["oof/acc_nested"] == pytest.approx(nested)
    best = (sizes * curves.max(1)).sum() / sizes.sum()
    assert parent.metrics["oof/optimism"] == pytest.approx(best - nested)


@pytest.mark.usefixtures("empty_store")
def test_a_stopped_set_goes_on_in_the_same_parent_and_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert re.search(r"resuming lenet5_scratch_digits_stopped \(seed 0, fold 1 of 2\)", capsys.readouterr().err)
    assert 0 < parent.metrics["oof/acc"] < 1


def _wait_for_second(process: Forked, folder: Path) -> None:
    def second_trains() -> bool:
        return len(list(folder.glob("mlruns/journal/*/last.ckpt"))) == 2

    wait_until(second_trains, timeout=60)
    assert process.poll() is None


@pytest.mark.usefixtures("empty_store")
def test_repeated_folds_have_one_test_and_untracked_ones_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--folds", "2", "--split_seeds", "3", "4", "--trainer.max_epochs=1", "--track=false") == 0
    printed = capsys.readouterr()
    assert printed.err.count("class  fold 0  fold 1  test") == 2  # the folds are others
    assert [line.rpartition(" ")[2] for line in printed.err.splitlines() if line.startswith("all ")] == ["359", "359"]
    assert "images right by the mean of the 2 networks that were not trained on them" in printed.out


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
