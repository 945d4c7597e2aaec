"""`lit-cnn compare`: its numbers computed again from the logits and the runs by other means; its report read back."""

import csv
import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans

from lit_cnn.cli import main
from lit_cnn.evaluation.compare import compare
from lit_cnn.evaluation.leaderboard import Group, Leaderboard, build_leaderboard
from lit_cnn.evaluation.pair import Pair
from lit_cnn.evaluation.predict import Loading
from lit_cnn.evaluation.statistics import mcnemar_exact, paired_mean_difference, welch_difference
from tests.runs import TrackedRun, fit, tracked_runs

NUM_IMAGES = 150


@pytest.fixture
def two_configurations(store_copy: Path) -> list[TrackedRun]:
    """The three runs of the trained store and two more with another learning rate, all on the same images."""
    assert fit("--seeds", "0", "1", "--model.lr=0.0002") == 0
    return tracked_runs(store_copy, "fit")


def test_one_classifier_each_is_mcnemars_test() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.random((1, NUM_IMAGES)) < share for share in (0.8, 0.6))
    difference, p_value = paired_mean_difference(first, second)
    table = [[int((a & b).sum()) for b in (second, ~second)] for a in (first, ~first)]
    assert p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert difference.mean == pytest.approx(first.mean() - second.mean())


@pytest.mark.parametrize("num_first", [1, 2])
def test_groups_are_exchanged_image_by_image(num_first: int) -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random((num_first, 9)) < 0.8, generator.random((3, 9)) < 0.5
    per_image = [float(a.mean() - b.mean()) for a, b in zip(first.T, second.T, strict=True)]
    observed = abs(sum(per_image))
    flips = [abs(np.dot(signs, per_image)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean([flipped >= observed - 1e-9 for flipped in flips])
    difference, p_value = paired_mean_difference(first, second)
    assert p_value == pytest.approx(expected) and 0 < p_value < 1
    assert difference.mean == pytest.approx(np.mean(per_image))
    assert paired_mean_difference(first, first)[1] == 1


def test_two_copies_of_each_classifier_say_what_one_of_each_says() -> None:
    generator = np.random.default_rng(2)
    first, second = (generator.random(NUM_IMAGES) < share for share in (0.75, 0.68))
    _, p_value = paired_mean_difference(np.stack([first, first]), np.stack([second, second]))
    assert p_value == pytest.approx(mcnemar_exact(first, second).p_value, abs=0.02)


def test_welchs_test_is_that_of_statsmodels() -> None:
    first, second = np.array([0.91, 0.93, 0.9]), np.array([0.85, 0.9])
    compared = CompareMeans.from_data(first, second)
    difference, p_value = welch_difference(first, second)
    assert p_value == pytest.approx(compared.ttest_ind(usevar="unequal")[1])
    assert difference[1:] == pytest.approx(compared.tconfint_diff(usevar="unequal"))
    assert welch_difference(np.array([0.5, 0.5]), np.array([0.5, 0.5]))[1] == 1
    assert welch_difference(np.array([0.75, 0.75]), np.array([0.5, 0.5])) == ((0.25, 0.25, 0.25), 0)


def group(name: str, correct: np.ndarray, val_accuracy: float) -> Group:
    ids = tuple(f"{name}{place}" for place in range(len(correct)))
    return Group(name, ids, correct.mean(axis=1), val_accuracy, correct, 1000, None)


def test_a_leaderboard_tests_on_images_where_it_can_and_adjusts_over_the_table() -> None:
    generator = np.random.default_rng(3)
    best, close, far, untold = (generator.random((2, NUM_IMAGES)) < share for share in (0.8, 0.88, 0.5, 0.6))
    single = replace(group("single", far[:1], 0.4), correct=None)
    groups = [
        group("close", close, 0.8),
        group("best on val", best, 0.9),
        group("far", far, 0.7),
        replace(group("untold", untold, 0.6), correct=None),
        single,
    ]
    board = build_leaderboard(groups, "a<b", "test", ["a note"])
    assert board.reference is groups[1] and board.standings[0].group is groups[0]
    by_name = {standing.group.name: standing for standing in board.standings}
    assert [standing.accuracy.mean for standing in board.standings] == sorted(
        (one.accuracies.mean() for one in groups), reverse=True
    )
    tests = {name: standing.test for name, standing in by_name.items()}
    assert tests == {"close": "images", "best on val": "none", "far": "images", "untold": "seeds", "single": "none"}
    p_values = [by_name[name].p_value for name in ("close", "far", "untold")]
    assert p_values[2] == pytest.approx(
        CompareMeans.from_data(untold.mean(1), best.mean(1)).ttest_ind(usevar="unequal")[1]
    )
    adjusted = multipletests(p_values, method="holm")[1]
    assert [by_name[name].p_holm for name in ("close", "far", "untold")] == pytest.approx(adjusted)
    for name, correct in (("close", close), ("far", far)):
        mean_correct = round(correct.mean() * NUM_IMAGES)
        assert by_name[name].limits == pytest.approx(proportion_confint(mean_correct, NUM_IMAGES, method="wilson"))
        assert by_name[name].accuracy == pytest.approx((2, correct.mean(), correct.mean(1).std(ddof=1)))
    assert by_name["untold"].limits is None and by_name["single"].p_value is None


def test_an_experiments_runs_are_grouped_by_configuration(
    two_configurations: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["compare", "--experiment", "digits", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in document["configurations"]}
    assert rows.keys() == {"lr 0.004", "lr 0.0002"}
    assert "lr 0.0002 could not" not in document["answer"] and document["answer"].startswith("Take lr 0.004: ")
    for name, row in rows.items():
        of_group = [run for run in two_configurations if f"lr {run.params['model.lr']}" == name]
        values = [run.metrics["test/acc"] for run in of_group]
        assert row["runs"] == [run.run_id for run in sorted(of_group, key=lambda run: run.tags["seed"])]
        expected = (len(values), np.mean(values), np.std(values, ddof=1))
        assert (row["n"], row["mean"], row["std"]) == pytest.approx(expected)
        assert (row["parameters"], row["multiply_adds"]) == (61_706, 416_520)
        # No logits are stored yet.
        assert row["low"] is None and row["test"] == ("none" if row["is_reference"] else "seeds")
    (note,) = document["notes"]
    assert note.startswith("5 runs have no stored logits on test") and two_configurations[4].run_id in note
    assert main(["ensemble", "--experiment", "digits", "--views", "1", "--num_workers", "0"]) == 0
    capsys.readouterr()
    assert main(["compare", "--experiment", "digits", "--format", "csv", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    (other,) = (row for row in csv.DictReader(io.StringIO(printed)) if row["is_reference"] == "False")
    assert other["test"] == "images" and 0 <= float(other["p"]) <= 1 and float(other["low"]) < float(other["mean"])
    names = {"leaderboard.csv", "leaderboard.json", "leaderboard.md", "report.html"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert Path("out/leaderboard.csv").read_text(encoding="utf-8") == printed
    (run,) = tracked_runs(Path.cwd(), "compare")
    assert {path.name for path in (run.artifacts / "evaluation").iterdir()} == names
    assert run.status == "FINISHED" and set(run.tags["members"].split()) == {one.run_id for one in two_configurations}


def test_a_run_whose_checkpoint_is_gone_is_named(store_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, *_ = runs = tracked_runs(store_copy, "fit")
    # Not `gone.artifacts`: until the store is opened, that is in the folder from which it was copied.
    Path("mlruns/artifacts/digits", gone.run_id, "artifacts/checkpoints/best.ckpt").unlink()
    board = compare(experiment="digits")
    assert isinstance(board, Leaderboard)
    assert any(gone.run_id in note and "has no file checkpoints/best.ckpt" in note for note in board.notes)
    assert main(["compare", "--runs", gone.run_id, runs[1].run_id]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert gone.run_id in line and "has no file checkpoints/best.ckpt" in line


def test_the_newest_run_of_a_seed_counts_and_a_run_without_test_is_left_out(store_copy: Path) -> None:
    assert fit("--seed_everything=0") == 0
    assert fit("--seed_everything=7", "--test_after_fit=false") == 0
    *_, newest, untested = tracked_runs(store_copy, "fit")
    board = compare(experiment="digits")
    assert isinstance(board, Leaderboard)
    (standing,) = board.standings
    assert standing.accuracy.n == 3 and standing.group.run_ids[0] == newest.run_id
    assert any(untested.run_id in note and "has no test/acc" in note for note in board.notes)
    on_val = compare(experiment="digits", split="val")
    assert isinstance(on_val, Leaderboard)
    assert [one.accuracy.n for one in on_val.standings] == [4]
    assert on_val.standings[0].accuracy.mean == pytest.approx(on_val.standings[0].group.val_accuracy)


def test_what_decides_no_weights_makes_no_row_and_a_run_without_result_blocks_none(
    store_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--data.num_workers=1", "--trainer.log_every_n_steps=5", "--resume=auto", "--checkpoint_seconds=1")
    assert fit("--seed_everything=8", *place) == 0
    assert fit("--seed_everything=9", "--trainer.max_epochs=-1", "--trainer.max_steps=3") == 0
    said = capsys.readouterr().err
    assert "the run ended before its first validation: it has no best epoch" in said and "epoch 1  train/loss" in said
    *others, unvalidated = tracked_runs(store_copy, "fit")
    board = compare(experiment="digits")
    assert isinstance(board, Leaderboard)
    (standing,) = board.standings
    assert standing.accuracy.n == len(others) == 4
    left_out = f"left out: {unvalidated.name} ({unvalidated.run_id}) ended before its first validation\n"
    assert capsys.readouterr().err == left_out
    assert main(["ensemble", "--experiment", "digits", "--views", "1", "--num_workers", "0", "--top_k", "4"]) == 0
    assert left_out in capsys.readouterr().err
    assert main(["ensemble", "--runs", unvalidated.run_id]) == 2
    assert "has no best/val/acc: it ended before its first validation" in capsys.readouterr().err


def test_two_runs_are_compared_image_by_image(
    two_configurations: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_configurations[0], two_configurations[-1]
    capsys.readouterr()
    pair = compare([first.run_id, second.run_id], loading=Loading(num_workers=0), output="out")
    assert isinstance(pair, Pair) and capsys.readouterr().out == ""
    said = " ".join(str(pair).split())
    assert pair.to_dataframe().loc[0, "first"] == pair.first.name in pair._repr_html_()
    right = [predictions.correct for predictions in (pair.first, pair.second)]
    for run, correct in zip((first, second), right, strict=True):
        assert np.float32(correct.mean()) == np.float32(run.metrics["test/acc"])
    won, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert won > lost and f"wins {won} images" in said and f"loses {lost}." in said
    record = json.loads(Path("out/pair.json").read_text(encoding="utf-8"))
    assert (record["won"], record["lost"]) == (won, lost) and record["sentences"][0] in said
    assert record["p"] == pytest.approx(binomtest(won, won + lost, 0.5).pvalue)
    assert record["difference"] == pytest.approx((won - lost) / len(right[0]))
    means = np.random.default_rng(0).choice(right[0].astype(int) - right[1], (5000, len(right[0]))).mean(axis=1)
    limits = (record["difference_low"], record["difference_high"])
    assert limits == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1.5 / len(right[0]))
    assert set(pair.won(1000)) == set(np.flatnonzero(right[0] & ~right[1]))
    assert (
        pair.first.confidence[pair.won(5)].tolist() == sorted(pair.first.confidence[pair.won(1000)], reverse=True)[:5]
    )
    with Image.open("out/won.png") as image:
        assert image.size[0] == 968
    (run,) = tracked_runs(Path.cwd(), "compare")
    assert pair.run is not None and pair.run.id == run.run_id
    assert run.tags["members"].split() == [first.run_id, second.run_id]
    assert {path.name for path in (run.artifacts / "evaluation").iterdir()} == {p.name for p in Path("out").iterdir()}
    assert main(["compare", "--runs", second.run_id, first.run_id, "--format", "csv", "--num_workers", "0"]) == 0
    (turned,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (int(turned["won"]), int(turned["lost"])) == (lost, won)
    assert float(turned["difference"]) == -record["difference"]


def test_mistakes_of_the_user_are_one_line(store_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracked_runs(store_copy, "fit")[0]
    assert fit("--data.split_seed=1", "--trainer.max_epochs=1") == 0
    elsewhere = tracked_runs(store_copy, "fit")[-1]
    shutil.rmtree("mlruns/predictions", ignore_errors=True)
    Path("file").write_text("")
    for arguments, words in (
        (["--experiment", "digitz"], ["--experiment digitz", "digits"]),
        (["--experiment", "Default"], ["--experiment Default: has no finished run"]),
        (["--experiment", "digits", "--filter", "tags.seed = '9'"], ["--filter", "matches no run"]),
        (["--experiment", "digits"], ["--filter", run.name, "differ in their test images"]),
        (["--runs", run.run_id, elsewhere.run_id], ["--runs", elsewhere.run_id, "differ in their test images"]),
        (["--runs", run.run_id, run.run_id], ["named twice"]),
        (["--runs", run.run_id, "abcdef123"], ["abcdef123"]),
        (["--experiment", "digits", "--filter", "tags.seed = '1'", "--output", "file/x"], ["--output file/x"]),
    ):
        capsys.readouterr()
        assert main(["compare", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in words), line
    assert tracked_runs(store_copy, "compare") == [] and not Path("mlruns/predictions").exists()
