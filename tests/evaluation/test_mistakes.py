"""Where a classifier errs: counted again by hand; shown on a page that hostile names cannot break out of."""

import csv
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report

from lit_cnn.data.contact_sheet import captioned_images
from lit_cnn.data.sources import ArrayImages, ImageSet
from lit_cnn.evaluation.activation import activation_maps, maps_of, why_no_maps
from lit_cnn.reports.mistakes import write_mistakes
from lit_cnn.reports.page import page
from lit_cnn.reports.predictions import Predictions, confusion_matrix, most_confused, scores_of_classes, worst_mistakes
from lit_cnn.training.classifier import LitClassifier

NUM_IMAGES = 200
NAMES = ("</td><script>alert(1)</script>", "a\nb|c", "$\\frac$", 'q"uote', "never there")


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """On 200 of 250 images, of five classes: the last has no image, and the one before it is never predicted."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 250)
    indices = generator.permutation(250)[:NUM_IMAGES]
    logits = generator.normal(size=(NUM_IMAGES, 5)) + 2 * np.eye(5)[truth[indices]]
    logits[:, 3] = -30
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    images = generator.integers(0, 256, (250, 32, 32, 1), dtype=np.uint8)
    image_set = ImageSet(
        name="hostile",
        source="here",
        images=ArrayImages(images),
        labels=truth,
        class_names=NAMES,
        paths=[f"folder/<img src=x onerror=alert({number})>\n.png" for number in range(250)],
        hashes=[str(number) for number in range(250)],
        in_channels=1,
    )
    return Predictions("<b>net</b>", image_set, indices, probabilities.argmax(axis=1), probabilities.max(axis=1))


def test_the_matrix_counts_true_classes_in_rows(predictions: Predictions) -> None:
    counts = confusion_matrix(predictions)
    for true in range(5):
        for predicted in range(5):
            pairs = zip(predictions.targets, predictions.labels, strict=True)
            assert counts[true, predicted] == sum(pair == (true, predicted) for pair in pairs)
    assert counts.sum() == NUM_IMAGES and counts.trace() == predictions.correct.sum()


def test_scores_are_those_of_the_counts(predictions: Predictions) -> None:
    counts = confusion_matrix(predictions)
    scores = scores_of_classes(predictions)
    for label in range(3):
        precision, recall = counts[label, label] / counts[:, label].sum(), counts[label, label] / counts[label].sum()
        expected = (NAMES[label], precision, recall, 2 / (1 / precision + 1 / recall), counts[label].sum())
        assert scores[label] == pytest.approx(expected)
    never_predicted, without_images = scores[3], scores[4]
    assert math.isnan(never_predicted.precision) and never_predicted.recall == never_predicted.f1 == 0
    assert without_images.support == 0 and math.isnan(without_images.recall) and without_images.precision == 0
    printed = classification_report(predictions.targets, predictions.labels, output_dict=True, zero_division=0.0)
    assert scores[1].f1 == pytest.approx(printed["1"]["f1-score"])


def test_the_most_confused_pairs_come_first(predictions: Predictions) -> None:
    pairs = most_confused(predictions, most=4)
    assert len(pairs) == 4 and [pair.num_images for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)
    off_diagonal = confusion_matrix(predictions) * (1 - np.eye(5, dtype=int))
    assert pairs[0].num_images == off_diagonal.max()
    true, predicted = NAMES.index(pairs[0].true_name), NAMES.index(pairs[0].predicted_name)
    assert off_diagonal[true, predicted] == pairs[0].num_images and true != predicted
    assert pairs[0].share == pytest.approx(pairs[0].num_images / (predictions.targets == true).sum())


def test_the_worst_mistakes_are_wrong_and_the_surest(predictions: Predictions) -> None:
    worst = worst_mistakes(predictions, most=10)
    sure = predictions.confidence
    assert not predictions.correct[worst].any() and len(worst) == 10
    assert sure[worst].tolist() == sorted(sure[~predictions.correct], reverse=True)[:10]


class Tags(HTMLParser):
    """Collects what a browser would take for tags and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_hostile_names_stay_text(predictions: Predictions, tmp_path: Path) -> None:
    model = LitClassifier("lenet5", num_classes=5, in_channels=1, image_size=32).eval()
    files, section = write_mistakes(predictions, tmp_path, maps_of(lambda: model), "first_")
    assert {file.name for file in files} == {
        "first_confusion.png",
        "first_classes.csv",
        "first_mistakes.png",
        "first_activation.png",
    }
    found = Tags()
    found.feed(page("<i>title", section))
    assert "script" not in found.tags and "b" not in found.tags and "i" not in found.tags
    assert len(found.sources) == 3 and all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert found.tags.count("img") == 3
    assert {NAMES[0], NAMES[3], "<i>title"} <= set(found.texts)
    with (tmp_path / "first_classes.csv").open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["class"] for row in rows] == list(NAMES)
    assert rows[3]["precision"] == "" and float(rows[1]["f1"]) == scores_of_classes(predictions)[1].f1
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 50


def test_a_classifier_without_mistakes_has_no_sheet(predictions: Predictions, tmp_path: Path) -> None:
    right = Predictions("net", predictions.image_set, predictions.indices, predictions.targets, np.ones(NUM_IMAGES))
    files, section = write_mistakes(right, tmp_path, None)
    assert [file.name for file in files] == ["confusion.png", "classes.csv"]
    assert "0 of 200 test images" in section and "Worst mistakes" not in section and "Most confused" not in section


def test_names_that_no_font_has_are_numbers_with_a_legend(
    predictions: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    monkeypatch.setattr("lit_cnn.core.fonts._faces", {})
    sheets, sections = [], []
    for names in (("cat", "猫", "dog", "犬", "ねこ"), ("cat", "class 1", "dog", "class 3", "class 4")):
        image_set = replace(predictions.image_set, class_names=names)
        (*_, sheet), section = write_mistakes(replace(predictions, image_set=image_set), tmp_path, None)
        sheets.append(np.asarray(Image.open(sheet)))
        sections.append(section)
    np.testing.assert_array_equal(sheets[0][: len(sheets[1])], sheets[1])
    assert len(sheets[0]) > len(sheets[1])
    found = Tags()
    found.feed(sections[0])
    legend = [text for text in found.texts if text.strip()]
    start = legend.index("In the pictures")
    assert legend[start : start + 8] == [
        "In the pictures",
        "Class",
        "class 1",
        "猫",
        "class 3",
        "犬",
        "class 4",
        "ねこ",
    ]
    assert "In the pictures" not in sections[1]


def test_captioned_images_stand_in_rows_of_eight() -> None:
    images = [np.full((20, 30, channels), 17 * place, np.uint8) for place, channels in enumerate([1, 3] * 5)]
    sheet = captioned_images(images, [["a\nb", "x" * 200]] * 10)
    assert np.array_equal(sheet, captioned_images(images, [["a\\nb", "x" * 200]] * 10))
    one_row = captioned_images(images[:8], [["a", "b"]] * 8)
    assert sheet.shape[1] == one_row.shape[1] and sheet.shape[0] == 2 * one_row.shape[0] - 8
    for place in range(10):
        row, column = divmod(place, 8)
        assert (sheet[row * (one_row.shape[0] - 8) + 60, 60 + column * 120] == 17 * place).all()


@pytest.mark.parametrize(("arch", "channels"), [("lenet5", 1), ("resnet20", 1), ("torchvision/mobilenet_v2", 3)])
def test_a_map_is_of_its_image_and_class(arch: str, channels: int) -> None:
    torch.manual_seed(0)
    model = LitClassifier(arch, num_classes=5, in_channels=channels, image_size=64 if channels == 3 else 32).eval()
    size = model.hparams["image_size"]
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    assert why_no_maps(model) == ""
    maps = activation_maps(model, images, np.array([0, 4]))
    assert maps.shape == (2, size, size, 3) and maps.dtype == np.uint8 and maps.std() > 1
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    other = activation_maps(model, images, np.array([1, 4]))
    assert not np.array_equal(maps[0], other[0]) and np.array_equal(maps[1], other[1])


def test_the_map_is_red_where_the_evidence_is() -> None:
    model = LitClassifier("lenet5", num_classes=2, in_channels=1, image_size=32).eval()
    net: Any = model.net
    with torch.no_grad():
        # What is bright passes both convolutions; class 1 is the sum of what the top left quarter's maps say.
        for layer in (net.conv1, net.conv2):
            layer.weight.fill_(0.05)
            layer.bias.zero_()
        for layer in (net.fc1, net.fc2, net.classifier):
            layer.weight.fill_(0.01)
            layer.bias.zero_()
        net.classifier.weight[0] = -0.01
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[:, :, :16, :16] = 255
    red = activation_maps(model, images, np.array([1]))[0, :, :, 0].astype(int)
    assert red[2:14, 2:14].mean() > red[18:, 18:].mean() + 50


@pytest.mark.parametrize(
    ("arch", "options", "size"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, 96),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}, 64),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, 96),
        ("xcit_nano_12_p16_224", {}, 64),
        ("test_vit2", {}, 160),
    ],
)
def test_a_transformers_map_is_of_its_tokens_where_their_patches_are(
    arch: str, options: dict[str, Any], size: int
) -> None:
    torch.manual_seed(0)
    model = LitClassifier(arch, arch_options=options, num_classes=5, in_channels=3, image_size=size).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert why_no_maps(model) == ""
    maps, other = (activation_maps(model, images, np.array(labels)) for labels in ([0, 4], [1, 4]))
    assert maps.shape == (2, size, size, 3)
    assert not np.array_equal(maps[0], other[0]) and np.array_equal(maps[1], other[1])


def test_a_transformers_map_is_red_where_the_evidence_is() -> None:
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 24, "num_heads": 1, "global_pool": "avg"}
    model = LitClassifier("vit_tiny_patch16_224", arch_options=options, num_classes=2, in_channels=3, image_size=64)
    net: Any = model.eval().net
    with torch.no_grad():
        net.pos_embed.zero_()
        # The block adds nothing, and class 1 is what tells patches that are bright from dark ones.
        net.blocks[0].attn.proj.weight.zero_()
        net.blocks[0].mlp.fc2.weight.zero_()
        bright, dark = (net.norm(net.patch_embed(torch.full((1, 3, 64, 64), value)))[0, 0] for value in (1.0, -1.0))
        net.head.weight[1] = bright - dark
        net.head.weight[0] = dark - bright
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, :, :32, 32:] = 255
    red = activation_maps(model, images, np.array([1]))[0, :, :, 0].astype(int)
    assert red[4:28, 36:60].mean() > max(red[36:, 36:].mean(), red[:, :28].mean()) + 50


def test_a_network_without_places_has_no_maps_and_says_so() -> None:
    model = LitClassifier("lenet5_1998", num_classes=10, in_channels=1, image_size=32).eval()
    model.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 10))
    model.net.get_classifier = lambda: model.net[1]  # type: ignore[assignment]
    assert why_no_maps(model).startswith("lit/lenet5_1998 ends in no feature maps or tokens of more than one place: ")


def test_without_the_extra_the_report_says_what_to_install(repo_root: Path) -> None:
    code = (
        "import sys; sys.modules['pytorch_grad_cam'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'pytorch_grad_cam' else find(name)\n"
        "from lit_cnn.training.classifier import LitClassifier\n"
        "from lit_cnn.evaluation.activation import why_no_maps\n"
        "print(why_no_maps(LitClassifier('lenet5', num_classes=2, in_channels=1, image_size=32)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    assert re.search(r"need grad-cam: pip install -e '\.\[grad-cam\]'\.$", done.stdout.strip())


@pytest.mark.parametrize("num_classes", [60, 61, 1000])
def test_of_very_many_classes_the_page_shows_some_and_says_where_all_are(num_classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, num_classes - 1, 20_000)  # the last class has no image
    labels = np.where(generator.random(20_000) < 0.8, truth, truth // 5 * 5)
    labels[truth == 17] = 3  # the most frequent confusion, of a class that is never right
    names = tuple(f"kind {number:03d}" for number in range(num_classes))
    image_set = ImageSet(
        name="many",
        source="here",
        images=ArrayImages(np.broadcast_to(np.zeros((1, 8, 8, 1), np.uint8), (20_000, 8, 8, 1))),
        labels=truth,
        class_names=names,
        paths=[f"{number}.png" for number in range(20_000)],
        hashes=[str(number) for number in range(20_000)],
        in_channels=1,
    )
    predictions = Predictions("net", image_set, np.arange(20_000), labels, generator.random(20_000))
    files, section = write_mistakes(predictions, tmp_path, None, "first_")
    found = Tags()
    found.feed(page("title", section))
    with (tmp_path / "first_classes.csv").open(encoding="utf-8", newline="") as text:
        assert [row["class"] for row in csv.DictReader(text)] == list(names)
    assert sum(file.stat().st_size for file in files) < 1 << 20 and len(section) < 1 << 19
    assert "first_confusion.csv" not in {file.name for file in files} or num_classes > 60
    if num_classes == 60:
        assert set(names) <= set(found.texts) and "first_classes.csv" not in section
        return
    with (tmp_path / "first_confusion.csv").open(encoding="utf-8", newline="") as text:
        pairs = list(csv.DictReader(text))
    assert sum(int(pair["images"]) for pair in pairs) == (~predictions.correct).sum()
    assert (pairs[0]["true class"], pairs[0]["predicted class"]) == ("kind 017", "kind 003")
    assert float(pairs[0]["share of the true class"]) == 1
    of_classes = [name for name in found.texts[found.texts.index("Classes") :] if name in names]
    assert len(of_classes) == 40 + 2 * 24 and of_classes[0] == "kind 017"  # 24 worst mistakes, with two classes each
    scores = {score.name: score.f1 for score in scores_of_classes(predictions)}
    others = [f1 for name, f1 in scores.items() if name not in of_classes[:40] and not math.isnan(f1)]
    assert max(scores[name] for name in of_classes[:20]) <= min([*others, 1])
    assert min(scores[name] for name in of_classes[20:40]) >= max([*others, 0])
    said = " ".join(found.texts)
    assert f"The 24 of {num_classes:,} classes that are confused most. first_confusion.csv has every pair" in said
    assert (
        f"Of {num_classes:,} classes the 20 with the lowest F1; first_classes.csv has all of them. 1 of them cannot"
        in said
    )
