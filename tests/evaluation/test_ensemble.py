"""`lit-cnn ensemble` on runs that were really trained: its numbers are computed again here from the stored logits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.splits import stratified_order
from lit_cnn.evaluation.combining import select_greedily
from lit_cnn.evaluation.ensemble import ensemble_runs
from lit_cnn.evaluation.members import refuse_unlike
from lit_cnn.evaluation.predictions import Member, load_member, predict_views
from lit_cnn.evaluation.report import Table
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import find_runs
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.record import class_names_tag
from tests.runs import CONFIGS, TrackedRun, fit, image_folder, tracked_runs


@pytest.fixture
def members(store_copy: Path) -> list[TrackedRun]:
    """The three runs, best on val first."""
    return sorted(tracked_runs(store_copy, "fit"), key=lambda run: -run.metrics["best/val/acc"])


def test_an_ensemble_of_one_with_one_view_is_the_test_of_the_run(
    members: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = members[0]
    table = ensemble(run_ids=[run.run_id], views=[1])
    member, alone = table.lines
    assert np.array_equal(member.row.correct, alone.row.correct)
    assert np.float32(alone.accuracy.mean) == np.float32(run.metrics["test/acc"])
    capsys.readouterr()
    assert main(["test", f"--ckpt_path=runs:/{run.run_id}"]) == 0
    assert f"test/acc  {alone.accuracy.mean:.4f}\n" in capsys.readouterr().out


def test_the_table_follows_from_the_stored_logits(members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    table = ensemble(run_ids=[run.run_id for run in members], views=[10, 1])
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    targets = stored(members[0], 1)[1]
    expected: list[tuple[int, int, np.ndarray]] = []
    for views in (1, 10):
        probabilities = [softmax(one, axis=-1).mean(0) for one in (stored(run, views)[0] for run in members)]
        expected += [(1, views, one.argmax(1) == targets) for one in probabilities]
        expected.append((3, views, np.mean(probabilities, axis=0).argmax(1) == targets))
    best = expected[0][2]
    assert len(table.lines) == 8
    for line, (num_models, views, correct) in zip(table.lines, expected, strict=True):
        assert (line.row.num_models, line.row.num_views) == (num_models, views)
        assert line.row.forward_passes == num_models * views
        assert np.array_equal(line.row.correct, correct)
        assert line.accuracy.mean == pytest.approx(correct.mean(), abs=1e-12)
    ensemble_line = table.lines[3]
    won = int((ensemble_line.row.correct & ~best).sum())
    lost = int((~ensemble_line.row.correct & best).sum())
    assert won + lost > 0
    assert ensemble_line.mcnemar is not None
    assert ensemble_line.mcnemar.p_value == pytest.approx(binomtest(won, won + lost, 0.5).pvalue)


def test_greedy_selection_and_temperatures_follow_from_the_logits_on_val(
    members: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [run.run_id for run in members]
    table = ensemble(run_ids=ids, views=[1, 144], limit_144=20, combine="greedy", calibration=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "ECE: expected calibration error" in said and "on a stratified part of 20 test images" in said
    for views in (1, 144):
        lines = {line.row.name: line for line in table.lines if line.row.num_views == views}
        greedy = lines["greedy ensemble"]
        counts = [0, 0, 0]
        for words in greedy.row.composition.split(", "):
            count, name = words.split(" x ")
            counts[[run.tags["seed"] for run in members].index(name.removeprefix("lenet5 seed "))] = int(count)
        assert (greedy.row.part is None) == (views == 1)
        answers = {}
        for split in ("val", "test"):
            kept = slice(None) if views == 1 else part_of(members[0], split, 20)
            logits, targets = zip(*(stored(run, views, split, kept) for run in members), strict=True)
            probabilities = softmax(np.stack(logits).astype(float), axis=-1).mean(axis=1)
            answers[split] = probabilities, targets[0]
        assert counts == select_greedily(*answers["val"]).tolist()
        together = {split: np.average(answers[split][0], axis=0, weights=counts) for split in answers}
        correct = {split: together[split].argmax(axis=1) == answers[split][1] for split in answers}
        assert np.array_equal(greedy.row.correct, correct["test"])
        assert greedy.row.val_counts == (correct["val"].sum(), len(correct["val"]))
        assert greedy.optimism is not None
        assert greedy.optimism.mean == pytest.approx(correct["val"].mean() - correct["test"].mean())
        grid = np.exp(np.linspace(np.log(0.01), np.log(100), 4001))
        logarithm = np.log(together["val"])
        losses = [log_loss(answers["val"][1], softmax(logarithm / t, axis=1), labels=range(10)) for t in grid]
        calibration = greedy.row.calibration
        assert calibration is not None and calibration.scaled is not None
        assert calibration.scaled.temperature == pytest.approx(grid[np.argmin(losses)], rel=0.005)
        assert calibration.nll == pytest.approx(log_loss(answers["test"][1], together["test"], labels=range(10)))
        after = softmax(np.log(together["test"]) / calibration.scaled.temperature, axis=1)
        assert calibration.scaled.nll == pytest.approx(log_loss(answers["test"][1], after, labels=range(10)))
        num_selected = np.count_nonzero(counts)
        assert ("top-k ensemble" in lines) == (num_selected < 3)
        if num_selected < 3:
            best = answers["test"][0][:num_selected].mean(axis=0).argmax(axis=1) == answers["test"][1]
            assert np.array_equal(lines["top-k ensemble"].row.correct, best)


@pytest.mark.slow
def test_all_images_with_144_crops_serve_a_part_of_them_too(
    members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [members[0].run_id]
    whole = ensemble(run_ids=ids, views=[144]).lines[0].row
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    row = ensemble(run_ids=ids, views=[144], limit_144=50).lines[0].row
    assert row.part is not None and len(row.part) == 50
    assert np.array_equal(row.correct, whole.correct[row.part])
    labels = stored(members[0], 144)[1]
    counts, all_counts = np.bincount(labels[row.part]), np.bincount(labels)
    assert np.abs(counts - 50 * all_counts / len(labels)).max() <= 1
    assert ensemble(run_ids=ids, views=[144], limit_144=10_000).lines[0].row.part is None


def test_weights_stand_in_the_order_of_the_runs(members: list[TrackedRun], store_copy: Path) -> None:
    worst_first = [run.run_id for run in reversed(members)]
    table = ensemble(run_ids=worst_first, weights=[3, 2, 1], views=[1])
    line = table.lines[-1]
    assert line.row.name == "ensemble of 3, weighted" and table.lines[-2].row.name == "ensemble of 3"
    logits, targets = zip(*(stored(run, 1) for run in members), strict=True)
    probabilities = np.average(softmax(np.stack(logits)[:, 0].astype(float), axis=-1), axis=0, weights=[1, 2, 3])
    assert np.array_equal(line.row.correct, probabilities.argmax(1) == targets[0])
    assert line.row.calibration is not None and line.row.calibration.scaled is None
    assert line.row.calibration.nll == pytest.approx(log_loss(targets[0], probabilities, labels=range(10)))
    by_vote = ensemble(run_ids=worst_first, combine="vote", views=[1]).lines[-1]
    assert by_vote.row.name == "ensemble of 3, vote" and by_vote.row.calibration is None
    by_logits = ensemble(run_ids=worst_first, combine="logits", views=[1]).lines[-1]
    expected = softmax(np.stack(logits)[:, 0].mean(axis=0, dtype=float), axis=1)
    assert np.array_equal(by_logits.row.correct, expected.argmax(1) == targets[0])
    runs = tracked_runs(store_copy, "ensemble")
    assert [run.params["combine"] for run in runs] == ["mean", "vote", "logits"]
    assert [run.metrics["test/acc"] for run in runs] == pytest.approx(
        [one.accuracy.mean for one in (line, by_vote, by_logits)]
    )


def test_members_are_chosen_by_val(members: list[TrackedRun]) -> None:
    table = ensemble(experiment="digits", top_k=2, views=[1])
    assert [line.row.run_id for line in table.lines] == [members[0].run_id, members[1].run_id, None]
    filtered = ensemble(experiment="digits", filter_string="tags.seed = '1'", views=[1])
    assert filtered.lines[0].row.run_id == next(run.run_id for run in members if run.tags["seed"] == "1")


def test_the_second_evaluation_makes_no_forward_pass(
    members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [run.run_id for run in members]
    first = ensemble(run_ids=ids, views=[1, 10])
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    again = ensemble(run_ids=ids, views=[1, 10])
    assert [line.accuracy for line in again.lines] == [line.accuracy for line in first.lines]
    ensemble(run_ids=ids, views=[5])  # the first five of the ten
    with pytest.raises(AssertionError, match="forward pass"):
        ensemble(run_ids=ids, views=[1, 2])


def test_no_view_is_computed_twice(members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    num_forwarded = []
    forward = LitClassifier.forward

    def counted(self: LitClassifier, images: torch.Tensor) -> torch.Tensor:
        num_forwarded.append(len(images))
        assert len(images) <= 100
        return forward(self, images)

    monkeypatch.setattr(LitClassifier, "forward", counted)
    ids = [members[0].run_id]
    per_image = []
    for views in ([1], [2], [10], [1, 2, 5, 10], [144]):
        num_forwarded.clear()
        limit = 20 if views == [144] else None
        num_images = ensemble(run_ids=ids, views=views, limit_144=limit, batch_size=100).num_images
        per_image.append(sum(num_forwarded) / num_images)
    assert per_image == [1, 1, 10, 0, 144]


def test_a_changed_byte_in_stored_logits_is_noticed_and_computed_again(
    members: list[TrackedRun], store_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensemble(run_ids=[members[0].run_id], views=[1])
    (file,) = store_copy.glob("mlruns/predictions/*.safetensors")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    file.write_bytes(changed)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="forward pass"):
        patch.setattr(LitClassifier, "forward", refuse_to_compute)
        ensemble(run_ids=[members[0].run_id], views=[1])
    again = ensemble(run_ids=[members[0].run_id], views=[1])
    assert np.array_equal(again.lines[0].row.correct, first.lines[0].row.correct)
    assert file.read_bytes() == whole


def test_members_of_different_size_and_architecture_average(store_copy: Path) -> None:
    assert fit("--model.arch=lenet5", "--data.image_size=28", "--trainer.max_epochs=1") == 0
    assert fit("--model.arch=test_resnet", "--data.in_channels=3", "--trainer.max_epochs=1") == 0
    runs = tracked_runs(store_copy, "fit")
    chosen = [runs[0], *runs[-2:]]
    table = ensemble(run_ids=[run.run_id for run in chosen], views=[1])
    assert {run.params["data.image_size"] for run in chosen} == {"28", "32"}
    by_id = {line.row.run_id: line.accuracy.mean for line in table.lines}
    for run in chosen:
        assert np.float32(by_id[run.run_id]) == np.float32(run.metrics["test/acc"])
    assert table.lines[-1].row.num_models == 3


def test_the_ensemble_is_a_run_that_names_its_members_and_holds_the_table(
    members: list[TrackedRun], store_copy: Path
) -> None:
    table = ensemble(run_ids=[run.run_id for run in members], views=[1], output=store_copy / "out")
    (run,) = tracked_runs(store_copy, "ensemble")
    ids = [member.run_id for member in members]
    assert run.status == "FINISHED"
    assert run.tags["members"].split() == ids
    assert [run.params[f"member.{place}"] for place in range(3)] == ids
    assert run.metrics["test/acc"] == pytest.approx(table.lines[-1].accuracy.mean)
    names = {"table.csv", "table.md", "table.json", "report.html", "accuracy.png", "pareto.png", "reliability.png"}
    names |= {"confusion.png", "classes.csv", "mistakes.png", "activation.png"}
    assert {path.name for path in (run.artifacts / "evaluation").iterdir()} == names
    assert {path.name for path in (store_copy / "out").iterdir()} == names
    assert json.loads((run.artifacts / "evaluation" / "table.json").read_text(encoding="utf-8"))
    assert (run.artifacts / "evaluation" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_has_each_rows_cost(members: list[TrackedRun], store_copy: Path) -> None:
    ids = [run.run_id for run in members[:2]]
    table = ensemble(run_ids=ids, views=[1, 2], latency=True, output=store_copy / "out")
    document = json.loads((store_copy / "out" / "table.json").read_text(encoding="utf-8"))
    assert "thread" in document["machine"]
    for record, line in zip(document["rows"], table.lines, strict=True):
        num_models = line.row.num_models
        assert record["multiply_adds"] == 416_520 * num_models * record["num_views"]
        assert record["parameters"] == 61_706 * num_models == num_models * int(members[0].tags["parameters"])
        assert 0 < record["seconds_for_1_median"] <= record["seconds_for_1_p95"]
        assert record["seconds_for_1_median"] < record["seconds_for_32_median"]
    untimed = ensemble(run_ids=ids, views=[1])
    assert all(line.row.cost is not None and not line.row.cost.latency for line in untimed.lines)


def test_members_without_a_common_ground_are_refused(members: list[TrackedRun], store_copy: Path) -> None:
    short = ("--trainer.max_epochs=1", "--test_after_fit=false")
    assert fit(*short, "--data.split_seed=1") == 0
    assert fit(*short, "--data.val_fraction=0.2") == 0
    _, _, _, other_test, other_val = tracked_runs(store_copy, "fit")
    first = members[0]
    assert other_val.tags["test_split_digest"] == first.tags["test_split_digest"]
    for other, what in ((other_test, "test images"), (other_val, "validation images")):
        with pytest.raises(UsageError, match=f"differ in their {what}") as refusal:
            ensemble(run_ids=[first.run_id, other.run_id])
        assert first.run_id in str(refusal.value) and other.run_id in str(refusal.value)


def test_members_with_other_class_names_are_refused(tmp_path: Path) -> None:
    for folder, classes in (("first", ["ant", "bee"]), ("second", ["ant", "wasp"])):
        image_folder(tmp_path / folder, classes, per_class=10)
        options = ["--data.image_size=32", "--data.num_workers=0", "--model.arch=lenet5", "--experiment=insects"]
        config = f"--config={CONFIGS / 'experiment' / 'own_images.yaml'}"
        assert main(["fit", config, f"--data.root={tmp_path / folder}", *options, "--trainer.max_epochs=1"]) == 0
    with pytest.raises(UsageError, match="differ in their class names"):
        ensemble(experiment="insects")


def test_val_images_that_changed_matter_only_where_they_are_needed(tmp_path: Path) -> None:
    image_folder(tmp_path / "insects", ["ant", "bee"], per_class=20)
    config = f"--config={CONFIGS / 'experiment' / 'own_images.yaml'}"
    options = ["--data.image_size=32", "--data.num_workers=0", "--model.arch=lenet5", "--experiment=insects"]
    assert main(["fit", config, f"--data.root={tmp_path / 'insects'}", *options, "--trainer.max_epochs=1"]) == 0
    (run,) = tracked_runs(tmp_path, "fit")
    data = load_member(run.artifacts / "checkpoints" / "best.ckpt").data
    val_paths = [data.image_set.paths[index] for index in data.splits["val"]]
    assert len(val_paths) > 2
    (tmp_path / "insects" / val_paths[0]).unlink()
    assert ensemble(run_ids=[run.run_id], views=[1]).num_images == len(data.splits["test"])
    for needs_val in ({"combine": "greedy"}, {"calibration": True}):
        with pytest.raises(UsageError, match=f"--runs {run.run_id}: the validation images in .* digest differs"):
            ensemble(run_ids=[run.run_id], views=[1], **needs_val)


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_members_with_the_same_classes_in_another_order_are_refused(num_classes: int, store_copy: Path) -> None:
    names = [f"class {label} of a long name" for label in range(num_classes)]
    first, second = find_runs(resolve_store(), [run.run_id for run in tracked_runs(store_copy, "fit")[:2]])
    swapped = [*names[:-2], names[-1], names[-2]]
    runs = [
        replace(run, tags={**run.tags, "class_names": class_names_tag(order)})
        for run, order in ((first, names), (second, swapped))
    ]
    refuse_unlike([runs[0], replace(second, tags=runs[0].tags)])
    with pytest.raises(UsageError, match=f"{first.run_id} .* and {second.run_id} .* differ in their class names"):
        refuse_unlike(runs)


def test_what_cannot_be_found_is_refused(members: list[TrackedRun], store_copy: Path) -> None:
    one = members[0].run_id
    for arguments, message in (
        ({"run_ids": [one, one]}, "a run is named twice"),
        ({"run_ids": [one, "abcdef123"]}, "abcdef123"),
        ({"experiment": "digitz"}, "--experiment digitz: not in .*digits"),
        ({"experiment": "digits", "filter_string": "tags.seed = '7'"}, "--filter .*matches no run"),
        ({"experiment": "digits", "filter_string": "seed is 7"}, "--filter"),
        ({"experiment": "digits", "top_k": 4}, "--top_k 4: only 3 runs match"),
    ):
        with pytest.raises(UsageError, match=message):
            ensemble(**arguments)
    best_of(members[0]).unlink()
    with pytest.raises(UsageError, match=f"{one}.*has no file checkpoints/best.ckpt"):
        ensemble(run_ids=[one])
    assert tracked_runs(store_copy, "ensemble") == []


def ensemble(**arguments: Any) -> Table:
    """Runs it on the store of the test's folder."""
    return ensemble_runs(resolve_store(), num_workers=0, **arguments)


def refuse_to_compute(*_: Any) -> None:
    raise AssertionError("a forward pass")


def best_of(run: TrackedRun) -> Path:
    return Path("mlruns/artifacts/digits", run.run_id, "artifacts/checkpoints/best.ckpt")


def stored(
    run: TrackedRun, views: int, split: Literal["val", "test"] = "test", kept: slice | list[int] = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a member's stored logits (V, N, K) about the images that are kept, and the true labels (N,)."""
    member, indices = images_of(run, split)
    indices = indices[kept]
    image_set = member.data.image_set
    return predict_views(member, indices, [views], Path("mlruns/predictions"))[views], image_set.labels[indices]


def images_of(run: TrackedRun, split: Literal["val", "test"]) -> tuple[Member, np.ndarray]:
    """Returns a member, and the images of a split by their paths."""
    member = load_member(best_of(run))
    paths = member.data.image_set.paths
    return member, np.array(sorted(member.data.splits[split], key=lambda index: paths[index]))


def part_of(run: TrackedRun, split: Literal["val", "test"], limit: int) -> list[int]:
    """Returns which of these images a limit leaves, ascending."""
    member, indices = images_of(run, split)
    chosen = set(stratified_order(member.data.image_set, indices, 0)[:limit].tolist())
    return [place for place, index in enumerate(indices.tolist()) if index in chosen]
