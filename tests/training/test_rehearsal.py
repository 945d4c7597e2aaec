"""What a run would fail of later is told before it is opened; the rehearsal changes nothing that the run does."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, StochasticWeightAveraging

from lit_cnn.core.errors import UsageError
from lit_cnn.data.sampling import TrainBatches
from lit_cnn.training import run as run_module
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.steps import check_callbacks
from tests.faults import wait_until
from tests.runs import fit, image_folder, same_weights, tracked_runs

CALLBACKS = "lightning.pytorch.callbacks"


def last(folder: Path) -> Path:
    (path,) = folder.glob("mlruns/journal/*/last.ckpt")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--model.mixup=0.2", "--trainer.gradient_clip_val=1.0"),
        ("--data.limit_train=33", "--model.arch=resnet18", "--trainer.precision=bf16-mixed"),
    ],
    ids=["mixed", "joined"],
)
def test_the_weights_are_those_without_a_rehearsal(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "with", tmp_path / "without"]
    states = []
    for folder in folders:
        folder.mkdir()
        monkeypatch.chdir(folder)
        if folder.name == "without":

            def only_what_it_decides(*args: object, **kwargs: object) -> None:
                args[2].merges_last_batch = "--data.limit_train=33" in options  # type: ignore[attr-defined]

            monkeypatch.setattr(run_module, "rehearse", only_what_it_decides)
        torch.manual_seed(5)
        assert fit(*options, "--trainer.max_epochs=1") == 0
        states.append(torch.random.get_rng_state())
    assert same_weights(*(last(folder) for folder in folders))
    assert torch.equal(*states)


NO_SUCH = "no such metric of EarlyStopping; choose one of val/acc, val/acc5"
FAILING = {
    "fused and clipped": (
        ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1", "--model.optimizer_options={fused: true}"],
        "--trainer.gradient_clip_val 1: a training step fails",
    ),
    "bf16-true": (["--trainer.precision=bf16-true"], "--trainer.precision bf16-true: a training step fails"),
    "second derivatives": (["--model.optimizer=adahessian"], "--model.optimizer adahessian: a training step fails"),
    "rate": (["--model.lr=1e30"], "--model.lr 1e+30: the loss is nan after the first step; give a lower one"),
    "one image": (["--model.arch=resnet18", "--data.batch_size=1"], "--data.batch_size 1: one image a step"),
    "all is one image": (
        ["--model.arch=resnet18", "--data.limit_train=1"],
        "--data.limit_train 1: one image to train on, on which alone this network cannot be trained",
    ),
    "no batch": (["--trainer.limit_train_batches=0"], "--trainer.limit_train_batches 0: leaves none of 8 batches"),
    "no share": (["--trainer.limit_train_batches=0.1"], "--trainer.limit_train_batches 0.1: leaves none of 8 batches"),
    "no val": (["--trainer.limit_val_batches=0.5"], "--trainer.limit_val_batches 0.5: leaves none of 1 batches of val"),
    "no test": (["--trainer.limit_test_batches=0.1"], "--trainer.limit_test_batches 0.1: leaves none of 2 batches"),
    "overfits nothing": (["--trainer.overfit_batches=0.5"], "--trainer.overfit_batches 0.5: leaves none of 1 batches"),
    "accumulates none": (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches 0: give a number"),
    "clips below 0": (["--trainer.gradient_clip_val=-1"], "--trainer.gradient_clip_val -1: give a number above 0"),
    "never validates": (
        ["--trainer.val_check_interval=9"],
        "--trainer.val_check_interval 9: an epoch has 8 batches; give less, or --trainer.check_val_every_n_epoch null",
    ),
    "no metric": ([f"--trainer.callbacks+={CALLBACKS}.EarlyStopping", "--trainer.callbacks.monitor=val/los"], NO_SUCH),
    "our metric": (["--monitor=val/accuracy"], "--monitor val/accuracy: choose one of"),
    "finds its batch": ([f"--trainer.callbacks+={CALLBACKS}.BatchSizeFinder"], "ask for it first: --find_batch_size"),
    "finds its rate": ([f"--trainer.callbacks+={CALLBACKS}.LearningRateFinder"], "; give --model.lr"),
    "accumulates twice": (
        [
            f"--trainer.callbacks+={CALLBACKS}.GradientAccumulationScheduler",
            "--trainer.callbacks.scheduling={1: 4}",
            "--trainer.accumulate_grad_batches=2",
        ],
        "says itself how many batches are accumulated",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_would_fail_is_one_line_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = FAILING[name]
    assert fit(*options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cnn: error: ")]
    assert expected in line
    assert not list(tmp_path.glob("mlruns/journal/*/"))


def test_a_metric_that_only_more_classes_have_cannot_be_monitored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(tmp_path / "images", ["dark", "light"], 12)
    options = ["--data.dataset=image_folder", f"--data.root={images}", "--data.limit_train=null"]
    assert fit(*options, "--monitor=val/acc5") == 2
    assert "--monitor val/acc5: no such metric; choose one of val/acc, val/balanced_acc" in capsys.readouterr().err


def test_gradients_are_clipped_in_mixed_precision(tmp_path: Path) -> None:
    options = ["--model.optimizer=momentum", "--model.optimizer_options={momentum: 0}", "--model.weight_decay=0"]
    options += ["--model.lr=1", "--model.schedule=constant", "--model.warmup_fraction=0", "--trainer.max_epochs=1"]
    options += ["--trainer.limit_train_batches=1", "--trainer.precision=bf16-mixed", "--test_after_fit=false"]
    weights = {}
    for clip in (1e-3, 1e-9):
        assert fit(*options, f"--trainer.gradient_clip_val={clip}", f"--experiment=clip{clip}") == 0
        (path,) = (path for path in tmp_path.glob("mlruns/journal/*/last.ckpt") if path not in weights)
        weights[path] = load_checkpoint(path)["state_dict"]
    one, other = weights.values()
    # The second is as good as where both began.
    moved = torch.sqrt(sum((one[name] - other[name]).square().sum() for name in one))
    assert float(moved) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has 16-mixed")
def test_a_cpu_records_the_precision_that_it_computes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.precision=16-mixed", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1") == 0
    assert "a CPU has no 16-mixed; precision is bf16-mixed" in capsys.readouterr().err
    (run,) = tracked_runs(tmp_path)
    assert run.params["trainer.precision"] == "bf16-mixed"


def test_a_last_batch_of_one_image_joins_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.arch=resnet18", "--data.limit_train=49", "--trainer.log_every_n_steps=1"]
    assert fit(*options) == 0
    assert "it joins the batch before" in capsys.readouterr().err
    (run,) = tracked_runs(tmp_path)
    assert [step for step, _ in run.history["train/loss_step"]] == list(range(6))
    assert run.history["lr"][-1][1] < run.history["lr"][-2][1] / 2  # it ends with the run
    # A network that can be trained on one image is.
    assert fit("--data.limit_train=49", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1") == 0
    assert len(tracked_runs(tmp_path)[1].history["train/loss_step"]) == 4


@pytest.mark.parametrize("merges_last", [False, True])
@pytest.mark.parametrize(("num_images", "world_size"), [(1, 1), (7, 1), (8, 1), (9, 1), (17, 2), (18, 2), (19, 2)])
def test_sizes_are_those_of_the_batches(num_images: int, world_size: int, merges_last: bool) -> None:
    of_processes = [
        TrainBatches(num_images, 8, 0, rank=rank, world_size=world_size, merges_last=merges_last)
        for rank in range(world_size)
    ]
    batches = [list(each) for each in of_processes]
    for each, own in zip(of_processes, batches, strict=True):
        assert [len(batch) for batch in own] == each.sizes
        assert len(own) == len(each)
    seen = sorted(position for own in batches for batch in own for _, position in batch)
    assert len(seen) == len(set(seen)) == num_images - num_images % 8 % world_size
    smallest = min(len(batch) for own in batches for batch in own)
    assert smallest >= 8 // world_size or not merges_last or num_images < 8


@pytest.mark.parametrize(
    ("callback", "remedy"), [(StochasticWeightAveraging(0.1), "swa_start"), (BackboneFinetuning(), "gradual")]
)
def test_callbacks_that_change_the_schedule_are_refused(callback: pl.Callback, remedy: str) -> None:
    trainer = pl.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(UsageError, match=f"callbacks={type(callback).__name__}: .*{remedy}"):
        check_callbacks(trainer)


def test_batches_that_make_no_step_log_none(tmp_path: Path) -> None:
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1"]
    assert fit(*options) == 0
    (run,) = tracked_runs(tmp_path)
    assert [step for step, _ in run.history["train/loss_step"]] == [0, 1, 2]


def test_batches_that_are_accumulated_from_an_epoch_on_are_counted(tmp_path: Path) -> None:
    scheduler = f"--trainer.callbacks+={CALLBACKS}.GradientAccumulationScheduler"
    options = [scheduler, "--trainer.callbacks.scheduling={1: 4}", "--trainer.log_every_n_steps=1"]
    assert fit(*options, "--trainer.max_epochs=3") == 0
    (run,) = tracked_runs(tmp_path)
    rates = [rate for _, rate in run.history["lr"]]
    assert [step for step, _ in run.history["lr"]] == list(range(8 + 2 + 2))
    assert max(rates) == pytest.approx(0.004, rel=0.05) and rates[-1] < 0.1 * max(rates)


def test_an_error_between_the_opening_and_the_first_step_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise ValueError("a picture that cannot be drawn")

    monkeypatch.setattr(run_module, "log_check", fails)
    with pytest.raises(ValueError, match="a picture"):
        fit()
    wait_until(lambda: [run.status for run in tracked_runs(tmp_path)] == ["FAILED"])
