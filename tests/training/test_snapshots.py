"""A run with a cyclic rate leaves a snapshot at the end of each cycle: members of an ensemble from one training."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import sha256_of_file
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.members import checkpoint_of, find_networks
from lit_cnn.evaluation.predict import Loading, load_member
from lit_cnn.evaluation.view_logits import predict_views
from lit_cnn.tracking import resolve_store
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.callbacks.snapshots import Snapshots
from lit_cnn.training.checkpoints import load_checkpoint
from tests.runs import TrackedRun, copy_empty_store, fit, inside, same_weights, tracked_runs

CYCLIC = ("--model.schedule=cyclic", "--model.cycles=3", "--model.warmup_fraction=0", "--trainer.max_epochs=6")


@pytest.fixture(scope="module")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrackedRun]:
    """Three cycles of two epochs: to be read, not changed."""
    folder = tmp_path_factory.mktemp("cyclic")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    with inside(folder):
        assert fit(*CYCLIC, "--trainer.log_every_n_steps=1") == 0
    (run,) = tracked_runs(folder)
    return folder, run


def test_the_rate_falls_from_its_peak_to_0_in_each_cycle(cyclic: tuple[Path, TrackedRun]) -> None:
    rates = np.array([value for _, value in cyclic[1].history["lr"]])
    cycle = 0.5 * (np.cos(np.pi * np.arange(16) / 16) + 1)  # Huang et al. 2017, equation 2
    # What is logged is the rate of the step to come.
    np.testing.assert_allclose(np.append(rates[-1:], rates[:-1])[1:], np.tile(rates.max() * cycle, 3)[1:], rtol=1e-6)


def test_a_snapshot_is_what_was_validated_at_the_end_of_its_cycle(cyclic: tuple[Path, TrackedRun]) -> None:
    folder, run = cyclic
    names = {path.name for path in (run.artifacts / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "snapshot_1.ckpt", "snapshot_2.ckpt", "snapshot_3.ckpt"}
    accuracies = [value for _, value in run.history["val/acc"]]
    for number in (1, 2, 3):
        epoch = 2 * number - 1
        checkpoint = load_checkpoint(run.artifacts / "checkpoints" / f"snapshot_{number}.ckpt")
        assert checkpoint["epoch"] == epoch and "optimizer_states" not in checkpoint
        assert run.metrics[f"snapshot_{number}/val/acc"] == accuracies[epoch]
    assert same_weights(*(run.artifacts / "checkpoints" / name for name in ("snapshot_3.ckpt", "last.ckpt")))
    with inside(folder):
        store = resolve_store()
        networks = find_networks(store, [f"{run.run_id[:8]}/snapshots"])
        assert [network.run_id for network in networks] == [f"{run.run_id}/{number}" for number in (1, 2, 3)]
        assert find_networks(store, [f"{run.run_id}/2"]) == networks[1:2]
        with pytest.raises(UsageError, match=r"/4: .* has no such snapshot; it has 1, 2, 3"):
            find_networks(store, [f"{run.run_id}/4"])


def test_snapshots_are_members_and_their_mean_a_baseline(cyclic: tuple[Path, TrackedRun]) -> None:
    folder, run = cyclic
    with inside(folder):
        store = resolve_store()
        networks = sorted(
            find_networks(store, [f"{run.run_id}/snapshots"]), key=lambda each: -each.metrics["best/val/acc"]
        )
        table = ensemble(runs=[f"{run.run_id}/snapshots"], views=[1], loading=Loading(num_workers=0))
        one: dict[str, Any] = {"runs": [run.run_id], "views": [1], "loading": Loading(num_workers=0)}
        compared = ensemble(**one, baselines=[f"{run.run_id}/snapshots"])
        with pytest.raises(UsageError, match=f"baselines={run.run_id}/1: .* has a row already"):
            ensemble(**one, baselines=[f"{run.run_id}/snapshots", f"{run.run_id}/1"])
        members = [load_member(checkpoint_of(store, network)) for network in networks]
        indices = np.array(sorted(members[0].data.splits.test, key=lambda i: members[0].data.image_set.paths[i]))
        logits = [predict_views(member, indices, [1], Path("mlruns/predictions"))[1][0] for member in members]
    targets = members[0].data.image_set.labels[indices]
    probabilities = softmax(np.stack(logits).astype(float), axis=-1)
    correct = [*(one.argmax(1) == targets for one in probabilities), probabilities.mean(0).argmax(1) == targets]
    assert [line.row.run_id for line in table.lines[:3]] == [network.run_id for network in networks]
    assert all(np.array_equal(line.row.correct, own) for line, own in zip(table.lines, correct, strict=True))
    assert {line.row.name for line in table.lines[:3]} == {f"snapshot {n}" for n in (1, 2, 3)}
    # As a baseline of one member: one row for their mean, which is not in the ensemble.
    member, mean = (line.row for line in compared.lines)
    assert member.kind == "member" and member.name.endswith("seed 0")
    assert (mean.name, mean.kind, mean.forward_passes) == ("3 snapshots", "baseline", 3)
    assert np.array_equal(mean.correct, correct[-1])
    assert compared.members[0].accuracy.n == 1 and not compared.gains
    # Their run keeps what is known of each, and their logits.
    kept = {path.name for path in (run.artifacts / "logits").iterdir()}
    checkpoints = [run.artifacts / "checkpoints" / f"{name}.ckpt" for name in ("best", "snapshot_1", "snapshot_3")]
    assert {f"{sha256_of_file(path)}.json" for path in checkpoints} <= kept
    assert len([name for name in kept if name.endswith(".safetensors")]) >= 3
    (of_three, of_one) = tracked_runs(folder, "ensemble")
    assert of_three.tags["members"].split() == [network.run_id for network in networks]
    assert of_one.tags["baselines"] == of_three.tags["members"]


def test_a_resumed_run_leaves_the_same_snapshots(
    cyclic: tuple[Path, TrackedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Snapshots.on_validation_end

    def written_then_killed(self: Snapshots, trainer: object, pl_module: object) -> None:
        written(self, trainer, pl_module)  # type: ignore[arg-type]
        if (Path(self.checkpoints.folder or "") / "snapshot_2.ckpt").exists():
            raise RunInterrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        # Between the snapshot and the last.ckpt of its epoch, where a kill would tear them apart.
        patch.setattr(Snapshots, "on_validation_end", written_then_killed)
        assert fit(*CYCLIC, "--checkpoint_seconds=0") == 128 + signal.SIGTERM
    assert fit(*CYCLIC, "--checkpoint_seconds=0", "--resume=auto") == 0
    (run,) = tracked_runs(tmp_path)
    for number in (1, 2, 3):
        files = (each.artifacts / "checkpoints" / f"snapshot_{number}.ckpt" for each in (run, cyclic[1]))
        assert same_weights(*files)
    assert len(run.history["snapshot_2/val/acc"]) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.max_epochs=5"], "--model.cycles 3: cycles are equal and end with an epoch"),
        (["--trainer.max_steps=7"], "--model.cycles 3: cycles are equal and end with an epoch"),
        (["--model.cycles=null"], "--model.cycles: goes with --model.schedule cyclic"),
        (["--model.schedule=constant"], "--model.cycles 3: goes with --model.schedule cyclic"),
        (["--model.cycles=0"], "--model.cycles 0: give a whole number"),
        (["--trainer.check_val_every_n_epoch=4"], "--trainer.check_val_every_n_epoch 4: each cycle of 2 epochs"),
    ],
)
def test_cycles_that_would_not_end_with_an_epoch_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fit(*CYCLIC, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.glob("mlruns/journal/*"))


def test_cycles_of_another_length_are_not_gone_on_with(
    cyclic: tuple[Path, TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    last = cyclic[1].artifacts / "checkpoints" / "last.ckpt"
    assert fit(*CYCLIC, "--trainer.max_epochs=9", f"--ckpt_path={last}") == 2
    assert "--model.cycles: would be 3 epochs each, and the checkpoint's are 2" in capsys.readouterr().err


def test_with_an_equal_average_the_ends_of_cycles_count(tmp_path: Path) -> None:
    assert fit(*CYCLIC, "--swa_start=3") == 0
    (run,) = tracked_runs(tmp_path)
    last = load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt")
    assert int(last["averaging_state"]["n_averaged"]) == 2
    snapshot = load_checkpoint(run.artifacts / "checkpoints" / "snapshot_3.ckpt")["state_dict"]
    assert all(torch.equal(snapshot[name], tensor) for name, tensor in last["state_dict"].items())
