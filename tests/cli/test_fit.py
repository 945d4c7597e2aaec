"""What `lit-cnn fit` leaves in MLflow, read from MLflow's own tables."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_cnn.cli import main
from lit_cnn.cli.configs import available_configs
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.resume import config_digest
from tests.conftest import Finished
from tests.runs import DIGITS, SHORT, TrackedRun, fit, runs_in, same_weights, tracked_runs

STEPS_PER_EPOCH, STEPS = 8, 16


@pytest.fixture
def run(trained: Path) -> TrackedRun:
    return tracked_runs(trained, "fit")[0]


def test_a_run_is_finished_and_named_after_what_it_trains(run: TrackedRun) -> None:
    assert (run.name, run.status) == ("lenet5_scratch_digits", "FINISHED")


def test_tags_say_what_was_trained_on_what(run: TrackedRun) -> None:
    expected = {"arch": "lit/lenet5", "transfer": "scratch", "data": "digits", "seed": "0", "parameters": "61706"}
    assert expected.items() <= run.tags.items()
    assert json.loads(run.tags["class_names"]) == [str(digit) for digit in range(10)]
    digests = [run.tags[f"{name}_digest"] for name in ("config", "data", "split", "val_split", "test_split")]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
    assert len(set(digests)) == 5
    assert run.metrics["model/parameters"] == 61706


def test_params_are_the_options_by_their_full_names(run: TrackedRun) -> None:
    expected = {
        "data.batch_size": "16",
        "data.limit_train": "128",
        "model.arch": "lenet5",
        "model.lr": "0.004",
        "trainer.max_epochs": "2",
        "seed_everything": "0",
    }
    assert expected.items() <= run.params.items()
    assert not {name for name in run.params if name.split(".")[0] in ("data", "model", "trainer") and "." not in name}


def test_each_epoch_and_every_second_step_is_logged_once(run: TrackedRun) -> None:
    ends = [STEPS_PER_EPOCH - 1, STEPS - 1]
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "val/acc5", "time/images_per_second"):
        assert [step for step, _ in run.history[name]] == ends, name
    for name in ("train/loss_step", "lr"):
        assert [step for step, _ in run.history[name]] == list(range(1, STEPS, 2)), name
    for name in ("test/loss", "test/acc", "test/acc5"):
        assert [step for step, _ in run.history[name]] == [STEPS - 1], name


def test_best_metrics_are_those_of_the_best_epoch(run: TrackedRun) -> None:
    accuracies = [value for _, value in run.history["val/acc"]]
    best = int(np.argmax(accuracies))
    assert run.metrics["best/val/acc"] == max(accuracies)
    assert run.metrics["best/epoch"] == best
    assert run.metrics["best/val/loss"] == run.history["val/loss"][best][1]


def test_the_best_checkpoint_is_kept_once_and_the_last_one_for_resuming(run: TrackedRun) -> None:
    kept = sorted(path.relative_to(run.artifacts).as_posix() for path in run.artifacts.rglob("*.ckpt"))
    assert kept == ["checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    best, last = (load_checkpoint(run.artifacts / name) for name in kept)
    assert "optimizer_states" not in best
    assert last["optimizer_states"]
    assert best["epoch"] == run.metrics["best/epoch"]
    assert last["global_step"] == STEPS
    assert best["lit_cnn"]["key"] == run.tags["lit_cnn.key"]


def test_the_split_and_the_data_are_inputs_of_the_run(trained: Path, run: TrackedRun) -> None:
    manifest = (run.artifacts / "data" / f"{run.tags['split_digest'][:16]}.csv").read_text(encoding="utf-8")
    with closing(sqlite3.connect(trained / "mlruns" / "mlflow.db")) as connection:
        query = (
            "SELECT d.name, d.digest, d.dataset_profile FROM datasets d JOIN inputs i ON i.source_id = d.dataset_uuid "
            "WHERE i.destination_id = ?"
        )
        ((name, digest, profile),) = connection.execute(query, (run.run_id,)).fetchall()
    assert name == "digits"
    assert run.tags["data_digest"].startswith(digest)
    counts = {split: manifest.count(f",{split}\n") for split in ("train", "val", "test")}
    assert json.loads(profile) == counts
    assert counts["train"] == 128


@pytest.mark.usefixtures("empty_store")
def test_the_config_of_a_run_trains_the_same_run_again(run: TrackedRun, tmp_path: Path) -> None:
    config_file = run.artifacts / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    assert config_digest(config, run.tags["data_digest"]) == run.tags["config_digest"]

    assert main(["fit", f"--config={config_file}"]) == 0
    (again,) = tracked_runs(tmp_path)
    assert again.tags["config_digest"] == run.tags["config_digest"]
    assert same_weights(again.artifacts / "checkpoints/last.ckpt", run.artifacts / "checkpoints/last.ckpt")
    assert without_clocks(again) == without_clocks(run)


def test_another_seed_is_another_run(trained: Path) -> None:
    one, other, _ = tracked_runs(trained, "fit")
    assert one.tags["config_digest"] != other.tags["config_digest"]
    assert one.tags["test_split_digest"] == other.tags["test_split_digest"]
    assert not same_weights(one.artifacts / "checkpoints/last.ckpt", other.artifacts / "checkpoints/last.ckpt")


def test_several_seeds_are_children_of_a_run_with_their_mean_and_deviation(trained: Path) -> None:
    (parent,) = tracked_runs(trained, "seeds")
    children = tracked_runs(trained, "fit")
    assert parent.status == "FINISHED"
    assert [child.tags["seed"] for child in children] == ["0", "1", "2"]
    assert {child.tags["mlflow.parentRunId"] for child in children} == {parent.run_id}
    for name in ("best/val/acc", "best/val/loss", "test/acc", "test/loss"):
        values = [child.metrics[name] for child in children]
        assert len(set(values)) > 1
        assert parent.metrics[name] == pytest.approx(np.mean(values), rel=1e-12)
        assert parent.metrics[f"{name}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)


@pytest.mark.usefixtures("empty_store")
def test_seeds_print_mean_and_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--seeds", "0", "1", "--trainer.max_epochs=1") == 0
    *_, said, then, last_line = capsys.readouterr().out.splitlines()
    (parent,) = tracked_runs(Path.cwd(), "seeds")
    mean, deviation = 100 * parent.metrics["test/acc"], 100 * parent.metrics["test/acc_std"]
    assert said.startswith(f"2 seeds: {mean:.2f} ± {deviation:.2f} % of the test images right")
    assert (then, last_line) == ("Next: lit-cnn ui", f"run {parent.run_id}")


def test_the_tracking_uri_of_the_environment_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "elsewhere" / "runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    assert fit("--trainer.max_epochs=1") == 0
    (run,) = runs_in(database)
    assert run.artifacts.is_relative_to(tmp_path / "elsewhere" / "artifacts")
    assert (run.artifacts / "checkpoints" / "best.ckpt").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_untracked_writes_nothing(tmp_path: Path) -> None:
    assert fit("--track=false", "--trainer.max_epochs=1") == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == []


@pytest.mark.usefixtures("empty_store")
def test_a_recipe_ends_the_name_and_an_experiment_can_be_chosen(tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=1", "--recipe=flat_lr", "--experiment=mine", "--test_after_fit=false") == 0
    (run,) = tracked_runs(tmp_path)
    assert run.name == "lenet5_scratch_digits_flat_lr"
    assert run.artifacts.parent.parent.name == "mine"
    assert "test/acc" not in run.metrics


@pytest.mark.usefixtures("empty_store")
def test_commit_and_changes_are_tagged(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / ".gitignore").write_text("mlruns\n.cache\n", encoding="utf-8")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    assert fit("--trainer.max_epochs=1", "--test_after_fit=false") == 0
    (tmp_path / "changed.txt").write_text("new", encoding="utf-8")
    assert fit("--trainer.max_epochs=1", "--test_after_fit=false") == 0
    clean, dirty = tracked_runs(tmp_path)
    assert (clean.tags["git_commit"], clean.tags["git_dirty"]) == (git("rev-parse", "HEAD"), "false")
    assert (dirty.tags["git_commit"], dirty.tags["git_dirty"]) == (git("rev-parse", "HEAD"), "true")


@pytest.mark.parametrize("experiment", [name for name in available_configs() if name.startswith("experiment/")])
def test_a_printed_config_prints_itself(experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = print_config(capsys, f"--config={experiment}", "--model.lr=0.0125")
    assert yaml.safe_load(printed)["model"]["lr"] == 0.0125
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert print_config(capsys, f"--config={tmp_path / 'printed.yaml'}") == printed


def test_later_configs_and_the_command_line_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "later.yaml").write_text("model: {lr: 0.5, weight_decay: 0.25}\n", encoding="utf-8")
    printed = print_config(capsys, f"--config={DIGITS}", "--config=later.yaml", "--model.lr=0.75")
    model = yaml.safe_load(printed)["model"]
    assert (model["lr"], model["weight_decay"], model["schedule"]) == (0.75, 0.25, "one_cycle")


def test_a_moved_project_finds_its_checkpoints(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "mlruns", tmp_path / "mlruns")
    run = tracked_runs(tmp_path, "fit")[0]
    assert main(["test", f"--ckpt_path=runs:/{run.run_id}", "--data.num_workers=0"]) == 0
    assert f"test/acc  {run.metrics['test/acc']:.4f}" in capsys.readouterr().out


def test_evaluation_leaves_no_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracked_runs(trained, "fit")[0]
    best = run.artifacts / "checkpoints" / "best.ckpt"
    assert main(["validate", f"--ckpt_path={best}"]) == 0
    assert f"val/acc  {run.metrics['best/val/acc']:.4f}" in capsys.readouterr().out
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.usefixtures("empty_store")
def test_side_branches_train_with_the_classifier_and_are_tracked(tmp_path: Path) -> None:
    options = ("--model.arch=googlenet", "--trainer.max_epochs=1", "--data.image_size=16", "--data.limit_train=32")
    for weight in (0.3, 0):
        arch_options = f"{{stem: small, width: 0.0625, aux_weight: {weight}}}"
        assert fit(*options, "--model.arch_options", arch_options, "--trainer.log_every_n_steps=1") == 0
    both, none = tracked_runs(tmp_path)
    aux = {"train/loss_aux1", "train/loss_aux2"}
    assert both.history.keys() - none.history.keys() == aux
    assert all(0 < both.metrics[name] < 10 for name in aux)
    # The classifier's own loss, from the same first weights and dropout: one step must pass before they differ.
    first = [run.history["train/loss_step"][0] for run in (both, none)]
    assert first[0] == first[1]
    assert both.history["val/loss"] != none.history["val/loss"]


@pytest.mark.slow
@pytest.mark.usefixtures("empty_store")
def test_two_devices_make_one_run_with_the_figures_of_one(lit_cnn_cli: Callable[..., Finished], tmp_path: Path) -> None:
    exact = "--trainer.precision=32-true"  # two halves of a batch add up to the whole, but for rounding
    two = ("--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp")
    done = lit_cnn_cli("fit", *SHORT, exact, *two, fresh=True)
    assert done.returncode == 0, done.stderr
    assert fit(exact) == 0
    shared, single = tracked_runs(tmp_path)
    assert shared.status == "FINISHED"
    alone = without_clocks(single)
    assert without_clocks(shared).keys() == alone.keys()
    for name, rows in without_clocks(shared).items():
        assert [step for step, _ in rows] == [step for step, _ in alone[name]], name
        if name != "train/loss_step":  # the first device's half of the batch
            assert [value for _, value in rows] == pytest.approx([value for _, value in alone[name]], abs=1e-4), name


def print_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *arguments, "--print_config"])
    return capsys.readouterr().out


def without_clocks(run: TrackedRun) -> dict[str, list[tuple[int, float]]]:
    return {name: rows for name, rows in run.history.items() if not name.startswith(("time/", "data/"))}


@pytest.mark.usefixtures("empty_store")
def test_the_monitor_may_be_the_f1_score() -> None:
    # At a constant rate this high, the score goes up and down: the best epoch is not the last.
    how = ("--model.lr=0.02", "--model.schedule=constant", "--trainer.max_epochs=4", "--seed_everything=1")
    assert fit("--monitor=val/f1", "--test_after_fit=false", *how) == 0
    (run,) = tracked_runs(Path.cwd(), "fit")
    best = max(run.history["val/f1"], key=lambda row: row[1])
    assert load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")["global_step"] == best[0] + 1
    assert run.metrics["best/val/f1"] == best[1]
