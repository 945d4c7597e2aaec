"""`ensemble` on runs that were really trained: its numbers are computed again here from the stored logits.

The tests share one store and the table of three runs, which is evaluated once. What is only about numbers is computed
without a report and a run in MLflow (`numbers_of`).
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.splits import Split, stratified_order
from lit_cnn.evaluation.combining import Outputs, select_greedily
from lit_cnn.evaluation.comparison import Comparison, evaluate
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.members import find_members, refuse_unlike
from lit_cnn.evaluation.predict import Loading, load_member, load_network, split_by_path
from lit_cnn.evaluation.table import Table
from lit_cnn.evaluation.view_logits import predict_views
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import find_runs
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.record import class_names_tag
from tests.runs import CONFIGS, TrackedRun, copy_empty_store, fit, image_folder, inside, tracked_runs

HERE = Loading(num_workers=0)


@pytest.fixture(scope="module")
def store(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the trained store, to which tests only add."""
    folder = tmp_path_factory.mktemp("ensembles")
    shutil.copytree(trained / "mlruns", folder / "mlruns")
    return folder


@pytest.fixture
def in_store(store: Path) -> Iterator[Path]:
    with inside(store):
        yield store


@pytest.fixture(scope="module")
def whole(store: Path) -> Table:
    """The table of the three runs with 1 and with 10 crops, and its report in the folder `out`."""
    with inside(store):
        ids = [run.run_id for run in tracked_runs(store, "fit")]
        return ensemble(ids, views=[10, 1], loading=HERE, output="out")


@pytest.fixture
def members(in_store: Path, whole: Table) -> list[TrackedRun]:
    """The three runs, best on val first; they are evaluated."""
    runs = {run.run_id: run for run in tracked_runs(in_store, "fit")}
    return [runs[line.row.run_id] for line in whole.lines[:3] if line.row.run_id]


@pytest.fixture(scope="module")
def others(store: Path) -> dict[str, TrackedRun]:
    """Runs of another experiment in that store: of other image sizes and architectures, and on other images."""
    short = ("--trainer.max_epochs=1", "--experiment=other")
    untested = (*short, "--test_after_fit=false")
    given = {
        "small": ("--model.arch=lenet5", "--data.image_size=28", *short),
        "color": ("--model.arch=test_resnet", "--data.in_channels=3", *short),
        "other test": ("--data.split_seed=1", *untested),
        "other val": ("--data.val_fraction=0.2", *untested),
    }
    found = {}
    with inside(store):
        for name, options in given.items():
            assert fit(*options) == 0
            found[name] = tracked_runs(store, "fit")[-1]
    return found


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs on image folders of other classes."""
    folder = tmp_path_factory.mktemp("insects")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    config = f"--config={CONFIGS / 'experiment' / 'own_images.yaml'}"
    options = ["--data.image_size=32", "--data.num_workers=0", "--model.arch=lenet5", "--experiment=insects"]
    with inside(folder):
        for name, classes in (("first", ["ant", "bee"]), ("second", ["ant", "wasp"])):
            image_folder(folder / name, classes, per_class=20)
            assert main(["fit", config, f"--data.root={folder / name}", *options, "--trainer.max_epochs=1"]) == 0
    return folder


def test_an_ensemble_of_one_with_one_view_is_the_test_of_the_run(
    members: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = members[0]
    table = numbers_of([run], views=[1])
    (alone,) = table.lines  # and no row that repeats it
    assert alone.row.kind == "member" and "There is nothing here to compare it with." in table.answer()
    assert np.float32(alone.accuracy.mean) == np.float32(run.metrics["test/acc"])
    capsys.readouterr()
    assert main(["test", f"--ckpt_path=runs:/{run.run_id}"]) == 0
    assert f"test/acc  {alone.accuracy.mean:.4f}\n" in capsys.readouterr().out


def test_the_table_follows_from_the_stored_logits(
    whole: Table, members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [run.metrics["best/val/acc"] for run in members] == sorted(
        (run.metrics["best/val/acc"] for run in members), reverse=True
    )
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    targets = stored(members[0], 1)[1]
    expected: list[tuple[int, int, np.ndarray]] = []
    for views in (1, 10):
        probabilities = [softmax(one, axis=-1).mean(0) for one in (stored(run, views)[0] for run in members)]
        expected += [(1, views, one.argmax(1) == targets) for one in probabilities]
        expected.append((3, views, np.mean(probabilities, axis=0).argmax(1) == targets))
    best = expected[0][2]
    assert len(whole.lines) == 8
    for line, (num_models, views, correct) in zip(whole.lines, expected, strict=True):
        assert (line.row.num_models, line.row.num_views) == (num_models, views)
        assert line.row.forward_passes == num_models * views
        assert np.array_equal(line.row.correct, correct)
        assert line.accuracy.mean == pytest.approx(correct.mean(), abs=1e-12)
    ensemble_line = whole.lines[3]
    won = int((ensemble_line.row.correct & ~best).sum())
    lost = int((~ensemble_line.row.correct & best).sum())
    assert won + lost > 0
    assert ensemble_line.mcnemar is not None
    assert ensemble_line.mcnemar.p_value == pytest.approx(binomtest(won, won + lost, 0.5).pvalue)


def test_greedy_selection_and_temperatures_follow_from_the_logits_on_val(
    members: list[TrackedRun],
) -> None:
    table = numbers_of(members, views=[1, 144], limit_144=20, combine="greedy", calibration=True)
    said = " ".join(str(table).split())
    assert "ECE: expected calibration error" in said and "on a stratified part of 20 test images" in said
    for views in (1, 144):
        lines = {line.row.name: line for line in table.lines if line.row.num_views == views}
        greedy = lines["greedy ensemble"]
        counts = [0, 0, 0]
        for words in greedy.row.composition.split(", "):
            count, name = words.split(" x ")
            counts[[run.tags["seed"] for run in members].index(name.removeprefix("seed "))] = int(count)
        assert (greedy.row.part is None) == (views == 1)
        answers = {}
        for split in ("val", "test"):
            kept = slice(None) if views == 1 else part_of(members[0], split, 20)
            logits, targets = zip(*(stored(run, views, split, kept) for run in members), strict=True)
            probabilities = softmax(np.stack(logits).astype(float), axis=-1).mean(axis=1)
            answers[split] = probabilities, targets[0]
        on_val = [Outputs(answers["val"][1], answers["val"][0])]
        assert counts == select_greedily(on_val.copy, 3).tolist()
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
        assert ("top-k ensemble" in lines) == (1 < num_selected < 3)
        if 1 < num_selected < 3:
            best = answers["test"][0][:num_selected].mean(axis=0).argmax(axis=1) == answers["test"][1]
            assert np.array_equal(lines["top-k ensemble"].row.correct, best)


@pytest.mark.slow
def test_all_images_with_144_crops_serve_a_part_of_them_too(
    members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers_of(members[:1], views=[144]).lines[0].row
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    row = numbers_of(members[:1], views=[144], limit_144=50).lines[0].row
    assert row.part is not None and len(row.part) == 50
    assert np.array_equal(row.correct, whole.correct[row.part])
    labels = stored(members[0], 144)[1]
    counts, all_counts = np.bincount(labels[row.part]), np.bincount(labels)
    assert np.abs(counts - 50 * all_counts / len(labels)).max() <= 1
    assert numbers_of(members[:1], views=[144], limit_144=10_000).lines[0].row.part is None


def test_weights_stand_in_the_order_of_the_runs(members: list[TrackedRun], in_store: Path) -> None:
    worst_first = [run.run_id for run in reversed(members)]
    before = len(tracked_runs(in_store, "ensemble"))
    table = ensemble(worst_first, weights=[3, 2, 1], views=[1])
    line = table.lines[-1]
    assert line.row.name == "ensemble of 3, weighted" and table.lines[-2].row.name == "ensemble of 3"
    logits, targets = zip(*(stored(run, 1) for run in members), strict=True)
    probabilities = np.average(softmax(np.stack(logits)[:, 0].astype(float), axis=-1), axis=0, weights=[1, 2, 3])
    assert np.array_equal(line.row.correct, probabilities.argmax(1) == targets[0])
    assert line.row.calibration is not None and line.row.calibration.scaled is None
    assert line.row.calibration.nll == pytest.approx(log_loss(targets[0], probabilities, labels=range(10)))
    by_vote = ensemble(worst_first, combine="vote", views=[1]).lines[-1]
    assert by_vote.row.name == "ensemble of 3, vote" and by_vote.row.calibration is None
    by_logits = ensemble(worst_first, combine="logits", views=[1]).lines[-1]
    expected = softmax(np.stack(logits)[:, 0].mean(axis=0, dtype=float), axis=1)
    assert np.array_equal(by_logits.row.correct, expected.argmax(1) == targets[0])
    runs = tracked_runs(in_store, "ensemble")[before:]
    assert [run.params["combine"] for run in runs] == ["mean", "vote", "logits"]
    assert [run.metrics["test/acc"] for run in runs] == pytest.approx(
        [one.accuracy.mean for one in (line, by_vote, by_logits)]
    )


def test_members_are_chosen_by_val(members: list[TrackedRun]) -> None:
    store = resolve_store()
    best_two = [run.run_id for run in members[:2]]
    assert [run.run_id for run in find_members(store, experiment="digits", top_k=2)] == best_two
    table = ensemble(experiment="digits", top_k=2, views=[1])
    assert [line.row.run_id for line in table.lines] == [*best_two, None]
    (filtered,) = find_members(store, experiment="digits", filter="tags.seed = '1'")
    assert filtered.run_id == next(run.run_id for run in members if run.tags["seed"] == "1")


def test_the_second_evaluation_makes_no_forward_pass(
    whole: Table, members: list[TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitClassifier, "forward", refuse_to_compute)
    again = ensemble([run.run_id for run in members], views=[1, 10])
    assert [line.accuracy for line in again.lines] == [line.accuracy for line in whole.lines]
    numbers_of(members, views=[5])  # the first five of the ten
    with pytest.raises(AssertionError, match="forward pass"):
        numbers_of(members[1:], views=[2])


def test_no_view_is_computed_twice(store_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_forwarded = []
    forward = LitClassifier.forward

    def counted(self: LitClassifier, images: torch.Tensor) -> torch.Tensor:
        num_forwarded.append(len(images))
        assert len(images) <= 100
        return forward(self, images)

    monkeypatch.setattr(LitClassifier, "forward", counted)
    (run, *_) = tracked_runs(store_copy, "fit")
    per_image = []
    for views in ([1], [2], [10], [1, 2, 5, 10], [144]):
        num_forwarded.clear()
        limit = 20 if views == [144] else None
        table = numbers_of([run], views=views, limit_144=limit, loading=Loading(batch_size=100, num_workers=0))
        per_image.append(sum(num_forwarded) / table.num_images)
    assert per_image == [1, 1, 10, 0, 144]


def test_a_changed_byte_in_stored_logits_is_noticed_and_computed_again(
    store_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run, *_) = tracked_runs(store_copy, "fit")
    first = numbers_of([run], views=[1])
    (file,) = store_copy.glob("mlruns/predictions/*.safetensors")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    file.write_bytes(changed)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="forward pass"):
        patch.setattr(LitClassifier, "forward", refuse_to_compute)
        numbers_of([run], views=[1])
    again = numbers_of([run], views=[1])
    assert np.array_equal(again.lines[0].row.correct, first.lines[0].row.correct)
    assert file.read_bytes() == whole


def test_members_of_different_size_and_architecture_average(
    members: list[TrackedRun], others: dict[str, TrackedRun]
) -> None:
    chosen = [members[0], others["small"], others["color"]]
    table = numbers_of(chosen, views=[1])
    assert {run.params["data.image_size"] for run in chosen} == {"28", "32"}
    by_id = {line.row.run_id: line.accuracy.mean for line in table.lines}
    for run in chosen:
        assert np.float32(by_id[run.run_id]) == np.float32(run.metrics["test/acc"])
    assert table.lines[-1].row.num_models == 3


def test_the_ensemble_is_a_run_that_names_its_members_and_holds_the_table(
    whole: Table, members: list[TrackedRun], in_store: Path
) -> None:
    run, *_ = tracked_runs(in_store, "ensemble")
    assert whole.run is not None and (run.run_id, run.name) == (whole.run.id, "ensemble_of_3_digits")
    ids = [member.run_id for member in members]
    assert run.status == "FINISHED" and whole.run.is_sent and whole.experiment == "digits"
    assert run.tags["members"].split() == ids
    assert [run.params[f"member.{place}"] for place in range(3)] == ids
    of_all = {line.row.num_views: line.accuracy.mean for line in whole.lines if line.row.kind == "ensemble"}
    assert run.metrics["test/acc"] == pytest.approx(of_all[1]) == whole.run.metrics["test/acc"]
    assert run.metrics["test/acc_10_crops"] == pytest.approx(of_all[10])
    names = {"table.csv", "table.md", "table.json", "report.html", "accuracy.png", "pareto.png", "reliability.png"}
    names |= {"confusion.png", "classes.csv", "mistakes.png", "activation.png"}
    assert {path.name for path in (run.artifacts / "evaluation").iterdir()} == names
    assert {path.name for path in (in_store / "out").iterdir()} == names
    assert json.loads((run.artifacts / "evaluation" / "table.json").read_text(encoding="utf-8"))
    assert (run.artifacts / "evaluation" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_shows_itself_and_reports_anywhere(
    whole: Table, members: list[TrackedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    frame = numbers_of(members, views=[1]).to_dataframe()
    assert capsys.readouterr().out == ""
    assert frame["accuracy"].tolist() == [line.accuracy.mean for line in whole.lines[:4]]
    assert frame["run_id"].tolist()[:3] == [run.run_id for run in members]
    text, html = str(whole), whole._repr_html_()
    for line in whole.lines:
        assert f"{100 * line.accuracy.mean:.2f} [" in text and f"{100 * line.accuracy.mean:.2f} [" in html
    assert repr(whole) == text and html.count("<svg") == 3 and "<html" not in html
    assert whole.report(tmp_path / "new" / "report") == tmp_path / "new" / "report" / "report.html"
    assert {path.name for path in (tmp_path / "new" / "report").iterdir()} == {
        path.name for path in Path("out").iterdir()
    }
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^output=.*file/x: cannot be written .*; give another folder$"):
        whole.report(tmp_path / "file" / "x")


def test_the_command_prints_the_table_and_takes_the_old_name_of_baselines(
    members: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (run.run_id for run in members[:2])
    capsys.readouterr()
    assert main(["ensemble", "--runs", first, f"--beside={second}", "--views", "1", "--num_workers", "0"]) == 0
    said = capsys.readouterr()
    assert "lit-cnn: --beside is now --baselines; the old name goes with 0.4" in said.err.splitlines()
    run = tracked_runs(Path.cwd(), "ensemble")[-1]
    assert said.out.endswith(f"run {run.run_id} in experiment digits; see it with: lit-cnn ui\n")
    assert run.tags["members"] == first and run.tags["baselines"] == second
    assert max(map(len, said.out.splitlines())) <= 150 and "The reference is the member best on val" in said.out
    assert main(["ensemble", "--runs", first, "--baselines", first, "--views", "1"]) == 2
    assert f"--baselines {first}: lenet5_scratch_digits has a row already; name it once" in capsys.readouterr().err


def test_the_report_has_each_rows_cost(members: list[TrackedRun]) -> None:
    table = numbers_of(members[:2], views=[1, 2], latency=True)
    document = json.loads(table.to_json())
    assert "thread" in document["machine"]
    for record, line in zip(document["rows"], table.lines, strict=True):
        num_models = line.row.num_models
        assert record["multiply_adds"] == 416_520 * num_models * record["num_views"]
        assert record["parameters"] == 61_706 * num_models == num_models * int(members[0].tags["parameters"])
        assert 0 < record["seconds_for_1_median"] <= record["seconds_for_1_p95"]
        assert record["seconds_for_1_median"] < record["seconds_for_32_median"]
    untimed = numbers_of(members[:2], views=[1])
    assert all(line.row.cost is not None and not line.row.cost.latency for line in untimed.lines)


def test_members_without_a_common_ground_are_refused(members: list[TrackedRun], others: dict[str, TrackedRun]) -> None:
    first = members[0]
    assert others["other val"].tags["test_split_digest"] == first.tags["test_split_digest"]
    for name, what in (("other test", "test images"), ("other val", "validation images")):
        with pytest.raises(UsageError, match=f"differ in their {what}") as refusal:
            ensemble([first.run_id, others[name].run_id])
        assert first.run_id in str(refusal.value) and others[name].run_id in str(refusal.value)


def test_members_with_other_class_names_are_refused(insects: Path) -> None:
    with inside(insects), pytest.raises(UsageError, match="differ in their class names"):
        ensemble(experiment="insects")


def test_val_images_that_changed_matter_only_where_they_are_needed(insects: Path) -> None:
    with inside(insects):
        run, _ = tracked_runs(insects, "fit")
        data = load_member(run.artifacts / "checkpoints" / "best.ckpt").data
        val_paths = [data.image_set.paths[index] for index in data.splits["val"]]
        assert len(val_paths) > 2
        (insects / "first" / val_paths[0]).unlink()
        assert ensemble([run.run_id], views=[1]).num_images == len(data.splits["test"])
        options: list[dict[str, Any]] = [{"combine": "greedy"}, {"calibration": True}]
        for needs_val in options:
            with pytest.raises(UsageError, match=f"runs={run.run_id}: the validation images in .* digest differs"):
                ensemble([run.run_id], views=[1], **needs_val)


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_members_with_the_same_classes_in_another_order_are_refused(
    num_classes: int, members: list[TrackedRun]
) -> None:
    names = [f"class {label} of a long name" for label in range(num_classes)]
    first, second = find_runs(resolve_store(), [run.run_id for run in members[:2]])
    swapped = [*names[:-2], names[-1], names[-2]]
    runs = [
        replace(run, tags={**run.tags, "class_names": class_names_tag(order)})
        for run, order in ((first, names), (second, swapped))
    ]
    refuse_unlike([runs[0], replace(second, tags=runs[0].tags)])
    with pytest.raises(UsageError, match=f"{first.run_id} .* and {second.run_id} .* differ in their class names"):
        refuse_unlike(runs)


def test_what_cannot_be_found_is_refused(members: list[TrackedRun], in_store: Path) -> None:
    one = members[0].run_id
    before = len(tracked_runs(in_store, "ensemble"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"runs": [one, one]}, "a run is named twice"),
        ({"runs": [one, "abcdef123"]}, "abcdef123"),
        ({"experiment": "digitz"}, "experiment.*digitz: not in .*digits"),
        ({"experiment": "digits", "filter": "tags.seed = '7'"}, "filter.*matches no run"),
        ({"experiment": "digits", "filter": "seed is 7"}, "filter"),
        ({"experiment": "digits", "top_k": 4}, "top_k=4: only 3 runs match"),
        ({}, "give the members by one of the two: runs=ID ID … or experiment=NAME"),
        ({"runs": [one], "views": [3]}, "views=3: known numbers of crops are 1, 2, 5, 10, 144"),
        ({"runs": [one], "limit_144": 9}, "limit_144=9: is for 144 crops; add 144 to views"),
        ({"runs": [one], "weights": [1, 2]}, "weights=1 2: 2 weights for 1 member; give one for each of runs"),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message):
            ensemble(**arguments)
    checkpoint = best_of(members[0])
    away = checkpoint.rename(in_store / "away.ckpt")
    try:
        with pytest.raises(UsageError, match=f"{one}.*has no file checkpoints/best.ckpt"):
            ensemble([one])
    finally:
        away.rename(checkpoint)
    assert len(tracked_runs(in_store, "ensemble")) == before


def numbers_of(runs: list[TrackedRun], *, views: list[int], loading: Loading = HERE, **options: Any) -> Table:
    """Returns the table of runs as `ensemble` computes it; writes no report and no run."""
    store = resolve_store()
    found = find_members(store, [run.run_id for run in runs])
    members = [load_network(store, run, ["test", "val"]) for run in found]
    return evaluate(members, Comparison(views, store.predictions_dir, loading=loading, **options))


def refuse_to_compute(*_: Any) -> None:
    raise AssertionError("a forward pass")


def best_of(run: TrackedRun) -> Path:
    return Path("mlruns/artifacts/digits", run.run_id, "artifacts/checkpoints/best.ckpt")


def stored(
    run: TrackedRun, views: int, split: Split = "test", kept: slice | list[int] = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a member's stored logits (V, N, K) of the images that are kept, and the true labels (N,)."""
    member = load_member(best_of(run))
    indices = split_by_path(member, split)[kept]
    logits = predict_views(member, indices, [views], Path("mlruns/predictions"), HERE)[views]
    return logits, member.data.image_set.labels[indices]


def part_of(run: TrackedRun, split: Split, limit: int) -> list[int]:
    """Returns which of a split's images a limit leaves, ascending."""
    member = load_member(best_of(run))
    indices = split_by_path(member, split)
    chosen = set(stratified_order(member.data.image_set, indices, 0)[:limit].tolist())
    return [place for place, index in enumerate(indices.tolist()) if index in chosen]
