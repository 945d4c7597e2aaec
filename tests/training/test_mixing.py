"""Mixup and CutMix: images and targets are mixed by the same share, drawn for the step."""

import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import torch_seed
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.mixing import build_mixing
from tests.runs import SHORT, same_weights, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

LABELS = torch.arange(8)


def black_and_white() -> torch.Tensor:
    """Images of one value each, so that a mixed pixel tells the share."""
    return torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()


def test_mixup_averages_neighbours_and_their_targets_by_one_share() -> None:
    mix = build_mixing(0.4, 0.0, 8)
    assert mix is not None
    torch.manual_seed(0)
    images, targets = mix(black_and_white(), LABELS)
    share = targets[1, 1].item()
    assert 0 < share < 1
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    expected = share * torch.arange(8.0) + (1 - share) * torch.arange(8.0).roll(1)
    torch.testing.assert_close(images, expected.reshape(8, 1, 1, 1).expand_as(images))


def test_cutmix_pastes_a_rectangle_and_counts_its_area() -> None:
    mix = build_mixing(0.0, 1.0, 8)
    assert mix is not None
    torch.manual_seed(1)
    images, targets = mix(black_and_white(), LABELS)
    pasted = images[1, 0] == 0
    rows, columns = pasted.nonzero().T
    assert 0 < len(rows) < 256
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert targets[1, 0].item() == pytest.approx(len(rows) / 256)
    assert targets[1, 1].item() == pytest.approx(1 - len(rows) / 256)


def test_with_both_a_batch_gets_one_of_them() -> None:
    mix = build_mixing(0.4, 1.0, 8)
    assert mix is not None
    torch.manual_seed(0)
    is_cut = [bool((mix(black_and_white(), LABELS)[0] % 1 == 0).all()) for _ in range(40)]
    assert 10 < sum(is_cut) < 30


def test_off_is_off_and_nonsense_is_refused() -> None:
    assert build_mixing(0.0, 0.0, 8) is None
    for mixup, cutmix, option in ((-1.0, 0.0, "mixup=-1"), (0.0, float("inf"), "cutmix=inf")):
        with pytest.raises(UsageError, match=f"{option}: give 0"):
            build_mixing(mixup, cutmix, 8)


def test_a_step_mixes_alike_whenever_it_is_made_and_evaluation_never_does() -> None:
    model = LitClassifier(mixup=0.4, cutmix=1.0)
    images = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    losses = []
    for step in (3, 4, 3):
        torch.manual_seed(torch_seed("step", 0, step, 0))
        losses.append(model.losses(images, LABELS)[0].item())
    assert losses[0] == losses[2] != losses[1]
    torch.testing.assert_close(model.eval()(images), LitClassifier().eval()(images))


def test_mixed_targets_meet_label_smoothing_and_side_branches() -> None:
    options = {"arch": "googlenet", "arch_options": {"stem": "small", "width": 0.1}, "image_size": 16}
    model = LitClassifier(mixup=0.4, label_smoothing=0.1, **options)  # type: ignore[arg-type]
    loss, parts = model.losses(torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8), LABELS)
    loss.backward()
    assert loss.isfinite() and len(parts) == 4 and 0 <= parts[0] <= 1


def test_mixed_targets_meet_class_weights() -> None:
    model = LitClassifier(mixup=0.4, class_weights="balanced", class_counts=[1, *[9] * 9], arch="lenet5").eval()
    images = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = float(model.losses(images, LABELS)[0])
        torch.manual_seed(0)
        assert model.mix is not None and model.loss_weights is not None
        views, targets = model.mix(model.normalize(images), LABELS)
        # Each class's share of an image counts with the weight of that class.
        terms = -targets * model.loss_weights * torch.log_softmax(model.net(views), 1)
    assert loss == pytest.approx(float(terms.sum(1).mean()), rel=1e-5)
    assert (targets > 0).sum(1).max() == 2 and model.loss_weights[0] != model.loss_weights[1]


def test_a_run_with_mixing_is_the_same_run_again() -> None:
    for _ in range(2):
        assert main(["fit", *SHORT, "--model.mixup=0.2", "--model.cutmix=1.0"]) == 0
    from pathlib import Path

    one, other = tracked_runs(Path.cwd(), "fit")
    assert one.history["train/loss"] == other.history["train/loss"]
    assert same_weights(one.artifacts / "checkpoints" / "last.ckpt", other.artifacts / "checkpoints" / "last.ckpt")
