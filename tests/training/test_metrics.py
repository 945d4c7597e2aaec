import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.losses import balanced_weights
from lit_cnn.training.metrics import evaluation_metrics

UNEVEN = [0] * 30 + [1] * 9 + [2] * 3


def computed(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    metrics = evaluation_metrics(logits.shape[1], "val/")
    for part in range(0, len(targets), 7):
        for name, metric in metrics.items(keep_base=True):
            if name != "loss":
                metric.update(logits[part : part + 7], targets[part : part + 7])
    return {name: float(metric.compute()) for name, metric in metrics.items() if name != "val/loss"}


def test_balanced_accuracy_and_f1_are_sklearns() -> None:
    targets = torch.tensor(UNEVEN)
    logits = F.one_hot(targets, 3) + torch.randn(len(UNEVEN), 3, generator=torch.Generator().manual_seed(0))
    found, predicted = computed(logits, targets), logits.argmax(1).numpy()
    assert found["val/balanced_acc"] == pytest.approx(balanced_accuracy_score(UNEVEN, predicted), abs=1e-6)
    assert found["val/f1"] == pytest.approx(f1_score(UNEVEN, predicted, average="macro"), abs=1e-6)
    assert found["val/balanced_acc"] != pytest.approx(found["val/acc"], abs=0.01)
    assert set(found) == {"val/acc", "val/balanced_acc", "val/f1"}


def test_a_class_without_images_does_not_count_as_never_found() -> None:
    targets = torch.tensor([0, 0, 1, 1])
    predicted = torch.tensor([0, 2, 1, 1])  # class 2 is predicted, and class 3 is neither there nor predicted
    found = computed(F.one_hot(predicted, 4).float(), targets)
    assert found["val/balanced_acc"] == pytest.approx(0.75)
    assert found["val/f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6)


def test_weights_are_sklearns_and_1_on_average() -> None:
    weights = balanced_weights([30, 9, 3])
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=UNEVEN), rtol=1e-6)
    assert float(weights[UNEVEN].mean()) == pytest.approx(1)
    assert balanced_weights([2, 0, 2]).tolist() == [1, 0, 1]
    with pytest.raises(UsageError, match="class_weights=balanced: needs class_counts"):
        LitClassifier(class_weights="balanced")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_of_a_whole_set_is_the_weighted_one_and_its_parts_add_up(label_smoothing: float) -> None:
    counts = [30, 9, 3]
    options = {"num_classes": 3, "label_smoothing": label_smoothing, "class_counts": counts}
    model = LitClassifier(class_weights="balanced", **options).eval()  # type: ignore[arg-type]
    images = torch.randint(0, 256, (42, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor(UNEVEN)
    with torch.no_grad():
        whole = model.losses(images, targets)[0]
        logits = model(images)
        # Over all images the weights average 1, so torch's weighted mean is the same.
        expected = F.cross_entropy(logits, targets, balanced_weights(counts), label_smoothing=label_smoothing)
        plain = LitClassifier(**options).eval().losses(images, targets)[0]  # type: ignore[arg-type]
        halves = [model.losses(images[half], targets[half])[0] for half in (slice(0, 21), slice(21, 42))]
    assert float(whole) == pytest.approx(float(expected), rel=1e-6)
    assert float(whole) != pytest.approx(float(plain), rel=1e-3)
    assert float(sum(halves)) / 2 == pytest.approx(float(whole), rel=1e-6), "as two devices would"


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_the_papers(label_smoothing: float) -> None:
    # Szegedy et al. 2015, "Rethinking the Inception architecture", section 7:
    # q'(k) = (1 - e) [k is the label] + e / K, and the loss is -sum over k of q'(k) log p(k).
    options = {"num_classes": 3, "label_smoothing": label_smoothing}
    model = LitClassifier(**options).eval()  # type: ignore[arg-type]
    images = torch.randint(0, 256, (42, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(model.losses(images, torch.tensor(UNEVEN))[0])
        logits = model(images).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    smoothed = (1 - label_smoothing) * np.eye(3)[UNEVEN] + label_smoothing / 3
    assert loss == pytest.approx(-(smoothed * log_p).sum(1).mean(), rel=1e-5)
    if label_smoothing:
        assert loss != pytest.approx(-log_p[np.arange(42), UNEVEN].mean(), rel=1e-4), (
            "smoothing makes a difference here"
        )


def test_the_data_says_how_many_there_are_of_each_class() -> None:
    data = ImageDataModule(class_names=[*"0123456789", "none"])
    assert data.class_counts == np.bincount(data.image_set.labels[data.splits.train], minlength=11).tolist()
    assert data.class_counts[10] == 0 and sum(data.class_counts) == len(data.splits.train)
