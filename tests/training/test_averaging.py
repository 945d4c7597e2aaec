"""The average is what its formula says, and it is what is validated, kept as the best and tested."""

from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.models import create_model
from lit_cnn.training.callbacks.averaging import average_step, equal_step
from lit_cnn.training.checkpoints import load_checkpoint
from tests.runs import SHORT, TrackedRun, fit, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

DECAY = 0.6
AVERAGED = (f"--ema_decay={DECAY}", "--model.arch_options={batch_norm: true}", "--trainer.max_epochs=3")


EQUAL = (
    "--swa_start=3",
    "--model.schedule=constant",
    "--model.warmup_fraction=0",  # of a run of another length it would be another warm-up
    "--model.arch_options={batch_norm: true}",
    "--trainer.max_epochs=5",
)


class Recorder(pl.Callback):
    """Keeps the weights after each step."""

    states: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Keeps them."""
        self.states.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    monkeypatch.setattr(Recorder, "states", [])
    return Recorder.states


def by_hand(states: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The average after each step, in float64; counts are the weights' own."""
    averages = [{name: tensor.double() for name, tensor in states[0].items()}]
    for n, state in enumerate(states[1:], start=1):
        decay = min(DECAY, (1 + n) / (10 + n))
        averages.append(
            {
                name: decay * averages[-1][name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
                for name, tensor in state.items()
            }
        )
    return averages


def the_run() -> TrackedRun:
    (run,) = tracked_runs(Path.cwd())
    return run


def test_checkpoints_hold_the_average_of_the_weights_of_each_step(recorded: list[dict[str, torch.Tensor]]) -> None:
    assert fit(*AVERAGED, "--trainer.callbacks+=tests.training.test_averaging.Recorder") == 0
    run = the_run()
    assert run.params["ema_decay"] == str(DECAY)
    assert len(recorded) == 24
    averages = by_hand(recorded)
    best, last = (load_checkpoint(run.artifacts / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    for checkpoint, average in ((best, averages[8 * best["epoch"] + 7]), (last, averages[-1])):
        torch.testing.assert_close(checkpoint["state_dict"], average, check_dtype=False, rtol=1e-5, atol=1e-6)
    # BatchNorm's statistics are averaged too, its count of batches is the last one.
    assert last["state_dict"]["net.conv1_norm.num_batches_tracked"] == 24
    assert not torch.equal(last["state_dict"]["net.conv1_norm.running_var"], recorded[-1]["net.conv1_norm.running_var"])
    # The weights that train are beside it, untouched by what was validated.
    assert all(torch.equal(last["current_model_state"][name], tensor) for name, tensor in recorded[-1].items())


def test_the_average_is_what_is_validated_and_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*AVERAGED) == 0
    run = the_run()
    best = run.artifacts / "checkpoints" / "best.ckpt"
    for verb, logged in (("validate", run.metrics["best/val/loss"]), ("test", run.metrics["test/loss"])):
        capsys.readouterr()
        assert main([verb, *SHORT, *AVERAGED, f"--ckpt_path={best}"]) == 0
        said = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert float(said["val/loss" if verb == "validate" else "test/loss"]) == pytest.approx(logged, abs=1e-4)


def test_training_goes_on_as_if_nothing_was_averaged(tmp_path: Path) -> None:
    assert fit(*AVERAGED) == 0
    assert fit(*AVERAGED, "--ema_decay=null") == 0
    averaging, plain = (load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt") for run in tracked_runs(tmp_path))
    if "averaging_state" in plain:
        averaging, plain = plain, averaging
    assert "averaging_state" not in plain
    for name, tensor in plain["state_dict"].items():
        assert torch.equal(averaging["current_model_state"][name], tensor)


def test_what_is_frozen_stays_bit_for_bit(tmp_path: Path) -> None:
    net = create_model("test_resnet", num_classes=10, in_channels=3, image_size=32)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    options = ("--model.arch=test_resnet", "--data.in_channels=3", "--model.transfer=head_only")
    assert fit(*options, f"--model.weights={tmp_path / 'weights.pth'}", f"--ema_decay={DECAY}") == 0
    last = load_checkpoint(the_run().artifacts / "checkpoints" / "last.ckpt")
    frozen = [name for name in net.state_dict() if not name.startswith("fc.")]
    assert len(frozen) > 20
    for state in (last["state_dict"], last["current_model_state"]):
        assert all(torch.equal(state[f"net.{name}"], net.state_dict()[name]) for name in frozen)
    assert not torch.equal(last["state_dict"]["net.fc.weight"], last["current_model_state"]["net.fc.weight"])


def test_on_cached_features_the_average_is_what_is_validated_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = create_model("test_resnet", num_classes=10, in_channels=3, image_size=32)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    options = ["--model.arch=test_resnet", "--data.in_channels=3", "--data.augment=null", "--model.transfer=head_only"]
    options += [f"--model.weights={tmp_path / 'weights.pth'}", "--model.feature_cache=fp32", f"--ema_decay={DECAY}"]
    assert fit(*options) == 0
    run = the_run()
    assert run.params["feature_cache"] == "fp32"
    best = run.artifacts / "checkpoints" / "best.ckpt"
    assert "averaging_state" in load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert main(["validate", *SHORT, *options, f"--ckpt_path={best}"]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said["val/loss"]) == pytest.approx(run.metrics["best/val/loss"], abs=1e-4)
    assert main(["fit", *SHORT, *options, "--model.head_solver=lbfgs"]) == 2
    assert "--ema_decay: a head that lbfgs solves for" in capsys.readouterr().err


def test_equal_average_of_the_last_epochs_is_validated_kept_and_tested(
    recorded: list[dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*EQUAL, "--trainer.callbacks+=tests.training.test_averaging.Recorder")
    assert fit(*options) == 0
    run = the_run()
    ends = [recorded[8 * epoch - 1] for epoch in (3, 4, 5)]
    averages = {
        2 + n: {
            name: torch.stack([end[name].double() for end in ends[:n]]).mean(0)
            if tensor.is_floating_point()
            else ends[n - 1][name]
            for name, tensor in ends[0].items()
        }
        for n in (1, 2, 3)
    }
    best, last = (load_checkpoint(run.artifacts / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    for checkpoint, epoch in ((best, best["epoch"] + 1), (last, 5)):
        torch.testing.assert_close(checkpoint["state_dict"], averages[epoch], check_dtype=False, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(last["current_model_state"][name], tensor) for name, tensor in recorded[-1].items())
    # Each validation saw the average of its epoch; the first two saw the weights themselves.
    assert len(run.history["val/loss"]) == 5
    capsys.readouterr()
    assert main(["validate", *SHORT, *EQUAL, f"--ckpt_path={run.artifacts / 'checkpoints' / 'best.ckpt'}"]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said["val/loss"]) == pytest.approx(run.history["val/loss"][best["epoch"]][1], abs=1e-4)
    assert float(said["val/loss"]) == pytest.approx(run.metrics["best/val/loss"], abs=1e-4)


def test_before_it_begins_the_average_is_the_weights_and_does_not_count_as_best() -> None:
    # By this measure the first epoch is the best of all.
    odd = ("--monitor=val/loss", "--monitor_mode=max")
    assert fit(*EQUAL, *odd, "--swa_start=5") == 0
    assert fit(*EQUAL, *odd, "--swa_start=null") == 0
    runs = {run.params.get("swa_start"): run for run in tracked_runs(Path.cwd())}
    averaging, plain = runs["5"], runs[None]
    # Of one epoch the average is that epoch's weights, so training and what is validated are those of the plain run.
    assert averaging.history["val/loss"] == plain.history["val/loss"]
    epochs = [load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")["epoch"] for run in (averaging, plain)]
    assert epochs == [4, 0]
    assert averaging.metrics["best/val/acc"] == plain.history["val/acc"][4][1]


@pytest.mark.parametrize("stop", ["during", "before"])
def test_a_resumed_run_ends_with_the_same_equal_average(stop: str, tmp_path: Path) -> None:
    assert fit(*EQUAL, "--swa_start=3") == 0
    assert fit(*EQUAL, "--swa_start=3", f"--trainer.max_epochs={4 if stop == 'during' else 3}") == 0
    _, part = tracked_runs(tmp_path)
    last = part.artifacts / "checkpoints" / "last.ckpt"
    assert fit(*EQUAL, "--swa_start=3", f"--ckpt_path={last}") == 0
    checkpoints = [run.artifacts / "checkpoints" / "last.ckpt" for run in tracked_runs(tmp_path)]
    states = [load_checkpoint(path) for path in (checkpoints[0], checkpoints[-1])]
    assert int(states[0]["averaging_state"]["n_averaged"]) == 3
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert states[0][key].keys() == states[1][key].keys()
        assert all(torch.equal(states[0][key][name], states[1][key][name]) for name in states[0][key])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.schedule=one_cycle"], "--swa_start 3: averages weights at a constant or cyclic rate"),
        (["--ema_decay=0.9"], "--swa_start 3: --ema_decay 0.9 is another average"),
        (["--swa_start=0"], "--swa_start 0: give an epoch from 1 to 5"),
        (["--swa_start=6"], "--swa_start 6: give an epoch from 1 to 5"),
    ],
)
def test_what_cannot_be_averaged_equally_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fit(*EQUAL, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.glob("mlruns/journal/*"))


def test_equal_weights_are_their_own_average() -> None:
    weights = [torch.randn(1000), torch.randn(10, 10)]
    average = [tensor.clone() for tensor in weights]
    for n in range(1, 100):
        average_step(average, weights, n, 0.999)
        equal_step(average, weights, n)
    assert all(torch.equal(one, other) for one, other in zip(average, weights, strict=True))


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (["--ema_decay=0.6"], [], "--ema_decay: the checkpoint holds an average"),
        ([], ["--ema_decay=0.6"], "--ema_decay 0.6: the checkpoint holds no average"),
        ([*EQUAL], ["--ema_decay=0.6"], "--ema_decay 0.6: the checkpoint holds no average of the weights made so"),
        (["--ema_decay=0.6"], [*EQUAL], "--ema_decay: the checkpoint holds an average"),
        ([*EQUAL], [*EQUAL, "--swa_start=4"], "--swa_start 4: the checkpoint's run has 3; keep that"),
    ],
)
def test_a_checkpoint_with_and_a_run_without_an_average_do_not_mix(
    first: list[str], then: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*first) == 0
    last = the_run().artifacts / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert fit(*then, f"--ckpt_path={last}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_largest_batch_is_found_with_an_average_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--find_batch_size=true", "--ema_decay=0.9") == 0
    assert "--data.batch_size 128" in capsys.readouterr().out
