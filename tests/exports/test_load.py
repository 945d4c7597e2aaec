"""Whatever holds a network, loaded to classify images; and `lit-cnn predict` on a folder."""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.sources import FileImages, load_digits
from lit_cnn.evaluation.predict import ViewImages
from lit_cnn.evaluation.predictor import Prediction, PredictionList, Predictor
from lit_cnn.exports import export
from lit_cnn.exports.load import load
from lit_cnn.portable import ImageClassifier
from lit_cnn.tracking.run import Run
from lit_cnn.training.load import load_classifier
from tests.runs import tracked_runs


@pytest.fixture
def checkpoint(store_copy: Path) -> Path:
    """The best checkpoint of a short run in the test's folder."""
    run, *_ = tracked_runs(store_copy, "fit")
    return store_copy / "mlruns/artifacts/digits" / run.run_id / "artifacts/checkpoints/best.ckpt"


def one(predictor: Predictor, image: Any) -> Prediction:
    """Returns the prediction for a single image."""
    found = predictor.predict(image)
    assert isinstance(found, Prediction)
    return found


@pytest.fixture
def predictor(checkpoint: Path) -> Predictor:
    return load(checkpoint)


def test_one_image_comes_in_many_forms(predictor: Predictor, checkpoint: Path, tmp_path: Path) -> None:
    gray = cv2.resize(load_digits().images[3], (40, 50))
    color = np.repeat(gray[..., None], 3, axis=2)
    cv2.imwrite(str(tmp_path / "one.png"), gray)
    model, record = load_classifier(checkpoint)
    view = resize_and_center_crop(gray[..., None], 32).transpose(2, 0, 1)[None]
    with torch.no_grad():
        (expected,) = model(torch.from_numpy(np.ascontiguousarray(view))).softmax(1).tolist()
    forms: list[Any] = [gray, gray[..., None], color, Image.fromarray(gray), Image.fromarray(color).convert("RGBA")]
    for form in [str(tmp_path / "one.png"), tmp_path / "one.png", *forms]:
        found = one(predictor, form)
        assert list(found.probabilities) == record["class_names"] == predictor.class_names
        assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-5)
        assert found.label == max(found.probabilities, key=lambda name: found.probabilities[name])
        assert found.probability == found.probabilities[found.label]
        assert found.file == (Path(form) if isinstance(form, str | Path) else None)
    listed = predictor.predict([tmp_path / "one.png", gray], batch_size=1)
    assert isinstance(listed, PredictionList) and [each.label for each in listed] == [found.label] * 2
    assert [each.file for each in listed] == [tmp_path / "one.png", None] and predictor.predict([]) == []
    rgb = {**vars(predictor.classifier), "in_channels": 3}
    rgb["probabilities"] = lambda views: views.mean((2, 3)) / views.mean((1, 2, 3))[:, None] / 3
    in_color = Predictor(ImageClassifier(**{**rgb, "class_names": ("red", "green", "blue")}))
    color[..., 2] = 0
    assert one(in_color, gray).probabilities == pytest.approx({"red": 1 / 3, "green": 1 / 3, "blue": 1 / 3})
    assert one(in_color, color).probabilities == pytest.approx({"red": 1 / 2, "green": 1 / 2, "blue": 0})


def test_predictions_show_themselves(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for number, name in enumerate(("b.png", "below/<i>.png")):
        cv2.imwrite(str(tmp_path / "folder" / name), load_digits().images[number])
    found = predictor.predict("folder", num_workers=0)
    assert isinstance(found, PredictionList)
    assert [each.file for each in found] == [Path("folder/b.png"), Path("folder/below/<i>.png")]
    assert str(found).splitlines() == [f"{each.file}: {each.label} ({100 * each.probability:.1f} %)" for each in found]
    html = found._repr_html_() + found[1]._repr_html_()
    assert "&lt;i&gt;.png" in html and "<i>" not in html and f"<td>{100 * found[1].probability:.1f}</td>" in html
    frame = found.to_dataframe()
    assert frame["label"].tolist() == [each.label for each in found]
    assert frame.loc[0, "7"] == found[0].probabilities["7"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((4, 4, 2), np.uint8),
            r"^images: an array of shape \(4, 4, 2\) is no image; give a path, an image of",
        ),
        (np.zeros((1, 1, 4, 4), np.uint8), r"shape \(1, 1, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((4, 4), np.float32), "an array of float32 has no known range; give uint8 from 0 to 255"),
        ([7], "int is no image"),
        (Image.new("F", (4, 4)), "an image of PIL cannot be decoded"),
        ("nowhere.png", r"nowhere\.png: cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str, predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.predict(images)


def test_a_network_is_found_by_all_that_names_it(checkpoint: Path, store_copy: Path) -> None:
    run, other, _ = tracked_runs(store_copy, "fit")
    export([run.run_id], "left", "torch")
    image = load_digits().images[0]
    expected = one(load(checkpoint), image)
    named = Run(run.run_id, run.name, {})
    for source in (str(checkpoint), run.run_id, run.run_id[:8], f"runs:/{run.run_id}", named, "left", Path("left")):
        assert one(load(source), image).probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert one(load(other.run_id), image).probabilities != pytest.approx(expected.probabilities, abs=1e-3)
    unsent = Run("0" * 32, "unsent", {}, checkpoint, is_sent=False)
    assert one(load(unsent), image).probabilities == expected.probabilities
    for nothing, message in (
        ("nowhere.ckpt", r"^source=nowhere\.ckpt: no such folder, file or run; give a run or its id"),
        (Path("abcdef123"), "^source=abcdef123: no such folder, file or run"),
        ("abcdef123", "abcdef123: not in"),
        (store_copy, r"has no model\.json; give a folder that lit-cnn export wrote"),
    ):
        with pytest.raises(UsageError, match=message):
            load(nothing)


def test_images_to_predict_come_as_validation_sees_them(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    files = FileImages(sorted(tmp_path.glob("*.png")), 3)
    views = ViewImages(files, np.array([2, 0]), {"image_size": 2, "interpolation": "area", "crop_pct": 1.0})
    batch = views.__getitems__([1, 0])
    assert len(views) == 2 and batch.shape == (2, 1, 3, 2, 2) and batch.dtype == torch.uint8
    assert batch[:, 0, 0, 0, 0].tolist() == [0, 2]


def test_predict_writes_what_the_network_says(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    names = [f"below/{i}.png" if i % 2 else f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), digits.images[i])
    arguments = ["predict", "--ckpt_path", str(checkpoint), "--folder", str(folder), "--batch_size", "4"]
    assert main([*arguments, "--num_workers", "0"]) == 0
    with open("predictions.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(names)
    model, record = load_classifier(checkpoint)
    views = np.stack([resize_and_center_crop(digits.images[i], 32) for i in range(6)]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        probabilities = model(torch.from_numpy(views)).softmax(1)
    for name, expected in zip(names, probabilities, strict=True):
        assert rows[name]["class"] == record["class_names"][int(expected.argmax())]
        assert float(rows[name]["probability"]) == pytest.approx(float(expected.max()), abs=1e-5)

    (folder / "below" / "torn.png").write_bytes((folder / "0.png").read_bytes()[:60])
    assert main([*arguments, "--num_workers", "0"]) == 2
    assert "below/torn.png: this image cannot be decoded" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", "--ckpt_path", str(checkpoint), "--folder", "empty"]) == 2
    assert "FOLDER empty: holds no images" in capsys.readouterr().err
