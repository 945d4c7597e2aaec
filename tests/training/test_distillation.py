"""A student learns from teachers what they say of its own images; what comes of it is a run like any other."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from lit_cnn.cli import main
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.predict import Loading
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import Distillation, Teachers, soft_loss
from tests.runs import SHORT, TrackedRun, same_weights, three_seeds, tracked_runs


def distill(*arguments: str) -> int:
    return main(["distill", *SHORT, *arguments])


@pytest.fixture
def teachers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrackedRun]:
    """Three seeds of the short run, in a store of the test's own."""
    shutil.copytree(three_seeds(tmp_path_factory.getbasetemp()) / "mlruns", tmp_path / "mlruns")
    return tracked_runs(tmp_path, "fit")


def by_name(folder: Path, ending: str) -> TrackedRun:
    (found,) = (run for run in tracked_runs(folder, "fit") if run.name.endswith(ending))
    return found


def test_the_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 10, generator=generator, requires_grad=True)
    others = torch.randn(5, 10, generator=generator)
    for temperature in (1.0, 4.0):
        teacher = (others / temperature).softmax(1)
        (gradient,) = torch.autograd.grad(soft_loss(logits, teacher, temperature), logits)
        # Hinton et al. 2015, equation 2, times T^2: T (q - p).
        expected = temperature * ((logits / temperature).softmax(1) - teacher) / 5
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert soft_loss(others, (others / 4).softmax(1), 4.0).item() == pytest.approx(0, abs=1e-6)


def test_teachers_say_what_the_ensemble_does_whatever_their_normalisation() -> None:
    networks = [LitClassifier(mean=[0.1], std=[0.3], seed=0), LitClassifier(mean=[0.5], std=[0.2], seed=1)]
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    expected = torch.stack([network.eval()(images).softmax(1) for network in networks]).mean(0)
    teachers = Teachers(networks)
    torch.testing.assert_close(teachers.probabilities(images / 255, 1.0), expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teachers.probabilities(images / 255, 1.0).dtype == torch.float32
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_a_student_is_trained_tracked_and_evaluated_like_any_other(
    teachers: list[TrackedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [run.run_id for run in teachers]
    ensemble(runs=ids, views=[1], loading=Loading(num_workers=0))
    (of_all,) = tracked_runs(tmp_path, "ensemble")
    assert distill("--teachers", of_all.run_id[:8], "--model.temperature=2", "--model.alpha=0.5") == 0
    student = by_name(tmp_path, "student")
    assert student.name == "lenet5_scratch_digits_student" and student.status == "FINISHED"
    assert all(run_id in student.params["model.teachers"] for run_id in ids)
    assert (student.params["model.temperature"], student.params["model.alpha"]) == ("2.0", "0.5")
    best = load_checkpoint(student.artifacts / "checkpoints" / "best.ckpt")
    plain = load_checkpoint(teachers[0].artifacts / "checkpoints" / "best.ckpt")
    assert best["hyper_parameters"].keys() == plain["hyper_parameters"].keys()
    assert best["state_dict"].keys() == plain["state_dict"].keys()
    capsys.readouterr()
    assert main(["test", f"--ckpt_path=runs:/{student.run_id}"]) == 0
    assert f"test/acc  {student.metrics['test/acc']:.4f}\n" in capsys.readouterr().out
    table = ensemble(runs=ids, baselines=[student.run_id], views=[1], loading=Loading(num_workers=0))
    assert (table.lines[-1].row.name, table.lines[-1].row.num_models) == ("student · seed 0", 1)
    assert np.float32(table.lines[-1].accuracy.mean) == np.float32(student.metrics["test/acc"])


def test_the_first_steps_loss_is_the_sum_of_both_on_the_students_own_views(teachers: list[TrackedRun]) -> None:
    addresses = [f"runs:/{run.run_id}" for run in teachers[:2]]
    options = {key: value for key, value in _hparams(teachers[0]).items() if not key.startswith("_")}
    student = Distillation(teachers=addresses, temperature=3.0, alpha=0.7, **{**options, "mixup": 0.4})
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    targets = torch.tensor([1, 2, 3, 4])
    seen = []
    student.mix = lambda views, labels: (seen.append(views.flip(0)) or views.flip(0), F.one_hot(labels, 10).float())  # type: ignore[func-returns-value]
    loss, _ = student.losses(images, targets)
    logits = student.net(seen[0])
    teachers_say = torch.stack([(one(images.flip(0)) / 3).softmax(1) for one in student.teachers.networks]).mean(0)
    soft = (
        -(teachers_say * (logits / 3).log_softmax(1)).sum(1).mean() + (teachers_say * teachers_say.log()).sum(1).mean()
    )
    expected = 0.7 * 9 * soft + 0.3 * F.cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    # Teachers are no part of what is trained and saved, nor of an average of the student.
    assert len(list(student.parameters())) == len(list(LitClassifier(**options).parameters()))
    assert AveragedModel(student).module.teachers is student.teachers


def test_a_stopped_student_goes_on_bit_for_bit(teachers: list[TrackedRun], tmp_path: Path) -> None:
    one = ["--teachers", teachers[0].run_id, "--model.schedule=constant", "--model.warmup_fraction=0"]
    assert distill(*one, "--recipe=whole") == 0
    assert distill(*one, "--recipe=part", "--trainer.max_epochs=1") == 0
    last = by_name(tmp_path, "part").artifacts / "checkpoints" / "last.ckpt"
    assert distill(*one, "--recipe=rest", f"--ckpt_path={last}") == 0  # in a run of its own
    whole, part, rest = (by_name(tmp_path, name) for name in ("whole", "part", "rest"))
    assert part.history["val/loss"] + rest.history["val/loss"] == whole.history["val/loss"]
    assert same_weights(*(run.artifacts / "checkpoints" / "last.ckpt" for run in (whole, rest)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.temperature=0"], "--model.temperature 0: give a number above 0"),
        (["--model.alpha=1.5"], "--model.alpha 1.5: give a number above 0 and at most 1"),
        (["--data.image_size=28"], "takes images of image_size 32, the student 28"),
        (["--data.in_channels=3"], "takes images of in_channels 1, the student 3"),
        (["--data.split_seed=1"], "was trained with other test images"),
        (["--data.val_fraction=0.2"], "was trained with other validation images"),
        (["--model.temprature=2"], "did you mean --model.temperature"),
    ],
)
def test_what_cannot_be_taught_is_refused(
    options: list[str], said: str, teachers: list[TrackedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(list(tmp_path.glob("mlruns/journal/*")))
    capsys.readouterr()
    assert distill("--teachers", teachers[0].run_id, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert len(list(tmp_path.glob("mlruns/journal/*"))) == before


def test_a_frozen_student_looks_at_images(
    teachers: list[TrackedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = teachers[0].run_id
    assert distill("--teachers", one, "--model.transfer=head_only", f"--model.weights={one}", "--recipe=frozen") == 0
    assert "feature cache off: teachers look at images" in capsys.readouterr().err
    assert by_name(tmp_path, "frozen").params["feature_cache"] == "off"


def test_a_teacher_that_is_none_is_refused(
    teachers: list[TrackedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble(runs=[run.run_id for run in teachers], views=[1], combine="vote", loading=Loading(num_workers=0))
    (vote,) = tracked_runs(tmp_path, "ensemble")
    capsys.readouterr()
    for ids, said in (
        ([vote.run_id], "is no plain mean of probabilities"),
        ([teachers[0].run_id] * 2, "a network is named twice"),
        (["0123456789ab"], "run 0123456789ab: not in"),
    ):
        assert distill("--teachers", *ids) == 2
        assert said in capsys.readouterr().err


def _hparams(run: TrackedRun) -> dict[str, Any]:
    return dict(load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")["hyper_parameters"])
