"""Whatever holds a network, loaded to classify images; and `lit-cnn predict` on a folder."""

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from lit_cnn.data.contact_sheet import captioned_images
from lit_cnn.data.decoding import MAX_PIXELS, limit_pixels, pixel_limit
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

    (tmp_path / "empty").mkdir()
    assert main(["predict", "--ckpt_path", str(checkpoint), "--folder", "empty"]) == 2
    assert "FOLDER empty: holds no images" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, str]:
    """A folder of ten images, five of which are none: name -> a part of the reason, empty for good ones."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        cv2.imwrite(str(folder / f"{2 * number}.png"), load_digits().images[number])
    content = (folder / "0.png").read_bytes()
    (folder / "1.png").write_bytes(content[:60])
    (folder / "3.png").write_bytes(b"")
    (folder / "5.png").write_text('no image,\nbut "text"')
    Image.new("1", (3000, 3000)).save(folder / "7.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "below" / "9.tif")
    reasons = {"1.png": "truncated", "3.png": "it is text", "5.png": "it is text", "7.png": "--max_pixels 8000000"}
    return {**{f"{2 * number}.png": "" for number in range(5)}, **reasons, "below/9.tif": "floating-point pixels"}


def rows_of(name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("least", [[], ["--min_confidence=1"]])
def test_bad_images_get_a_row_that_says_why(
    least: list[str],
    num_workers: int,
    mixed: dict[str, str],
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = [f"--ckpt_path={checkpoint}", "--batch_size=1", f"--num_workers={num_workers}", *least]
    assert main(["predict", *how, "mixed", "--max_pixels=8_000_000"]) == 1
    out, err = capsys.readouterr()
    first, *said, last = out.splitlines()
    assert first == "5 of 10 images classified: predictions.csv" and last.split() == ["not", "classified", "5"]
    assert err == (
        "lit-cnn: warning: 5 of 10 images could not be classified: 1.png, 3.png, 5.png, 7.png, below/9.tif; the column "
        "error of predictions.csv says why\n"
    )
    rows = rows_of()
    assert list(rows[0]) == ["file", "class", "probability", *(["best_class"] if least else []), "error"]
    assert [row["file"] for row in rows] == sorted(mixed)
    for row in rows:
        reason = mixed[row["file"]]
        assert reason in row["error"] and bool(row["error"]) == bool(reason)
        assert [bool(row[name]) for name in row if name not in ("file", "error")] == [not reason] * (len(row) - 2)
        assert "\n" not in row["error"] and "`" not in row["error"]
        label = row["best_class"] if least else row["class"]
        sure = f"uncertain, {label}" if least else label
        what = f"not classified, {row['error']}" if reason else f"{sure} {100 * float(row['probability']):.1f} %"
        assert f"{row['file']}: {what}" in said  # ten images are said one by one
    # The others are classified as they are without them.
    good = [row for row in rows if not row["error"]]
    assert main(["predict", *how, *(f"mixed/{row['file']}" for row in good), "--output=good.csv"]) == 0
    assert rows_of("good.csv") == [{**row, "file": f"mixed/{row['file']}"} for row in good]


UNSURE = {f"{name}{number:02d}.png" for name in "abc" for number in range(2)}


def test_many_images_are_counted_and_the_least_sure_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    """A classifier that reads class and probability off an image's gray: 41 images, 20 of `b`, one that is none."""
    names = ("a", "b", "c")

    def probabilities(views: np.ndarray) -> np.ndarray:
        gray = views[:, 0, 0, 0]
        sure = 0.4 + (gray % 64) / 100
        return np.stack([np.where(gray // 64 == label, sure, (1 - sure) / 2) for label in range(3)], 1)

    fake = Predictor(ImageClassifier(names, 4, 1, "area", 1.0, probabilities))
    monkeypatch.setattr("lit_cnn.exports.load.load", lambda source, tracking_uri: fake)
    (tmp_path / "many").mkdir()
    for label, many in ((0, 18), (1, 20), (2, 2)):
        for number in range(many):
            cv2.imwrite(f"many/{names[label]}{number:02d}.png", np.full((8, 8), 64 * label + number, np.uint8))
    Path("many/none.png").write_text("no image")
    drawn: list[Any] = []

    def captioned(images: Any, lines: Any) -> np.ndarray:
        drawn.extend(lines)
        return captioned_images(images, lines)

    monkeypatch.setattr("lit_cnn.evaluation.tally.captioned_images", captioned)
    predict = ["predict", f"--ckpt_path={checkpoint}", "--num_workers=0", "many", "--sheet=sheet.png"]
    assert main([*predict, "--min_confidence=0.415"]) == 1
    out = capsys.readouterr().out.splitlines()
    sheet = cv2.imread("sheet.png")
    assert sheet is not None
    height = sheet.shape[0]
    assert [line.split() for line in out] == [
        ["40", "of", "41", "images", "classified:", "predictions.csv"],
        ["class", "images", "mean", "probability"],
        ["b", "18", "50.5", "%"],
        ["a", "16", "49.5", "%"],
        ["c", "0"],
        ["uncertain,", "below", "41.5", "%", "6", "40.5", "%"],
        ["not", "classified", "1"],
        ["sheet.png:", "968", "x", str(height), "px"],
    ]
    shown = [line for line, _ in drawn]
    assert shown[:2] == ["b 42 %", "b 43 %"] and drawn[0][1] == "b02.png" and len(drawn) == 16 + 16 + 6
    assert ("b 59 %", "b19.png") not in drawn and {name for _, name in drawn[-6:]} == UNSURE
    for option, message in ((["--sheet=many"], "--sheet many: cannot"), (["--sheet=predictions.csv"], "--output too")):
        assert main([*predict[:-1], *option]) == 2
        assert message in capsys.readouterr().err


def test_what_is_given_is_classified_whatever_it_is_called(
    mixed: dict[str, str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["predict", f"--ckpt_path={checkpoint}", "--num_workers=0"]
    (tmp_path / "photo").write_bytes((tmp_path / "mixed" / "0.png").read_bytes())
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "é.png").write_bytes((tmp_path / "mixed" / "2.png").read_bytes())
    assert main([*predict, "photo", "good", "mixed/7.png"]) == 0
    assert [row["file"] for row in rows_of()] == ["photo", "good/é.png", "mixed/7.png"]
    assert main([*predict, "--folder=mixed/1.png"]) == 1
    assert [row["file"] for row in rows_of()] == ["mixed/1.png"]
    capsys.readouterr()
    before = (tmp_path / "predictions.csv").read_bytes()
    for arguments, message in (
        (["photo", "nowhere.jpg"], "FOLDER nowhere.jpg: no such folder or file; give"),
        ([], "give images or folders of them, or one --folder; see lit-cnn predict --help"),
        (["photo", "--folder=good"], "give images or folders of them, or one --folder"),
        (["photo", "--max_pixels=0"], "--max_pixels 0: give a whole number of at least 1"),
        (["photo", "--output=good"], "--output good: cannot be written (Is a directory)"),
        # All that headers tell at once; then what only decoding does.
        (
            ["mixed", "--on_bad_image=raise"],
            "3 images: cannot be decoded: mixed/3.png: holds no bytes; mixed/5.png: it is text; mixed/below/9.tif: ",
        ),
        (["mixed/0.png", "mixed/1.png", "--on_bad_image=raise"], "mixed/1.png: this image cannot be decoded (image"),
    ):
        assert main([*predict, *arguments]) == 2
        said = capsys.readouterr().err
        assert f"lit-cnn: error: {message}" in said and said.count("\n") == 1
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_an_interruption_leaves_what_was_classified(
    mixed: dict[str, str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict = ["predict", f"--ckpt_path={checkpoint}", "--num_workers=0", "mixed"]
    assert main(predict) == 1
    whole = (tmp_path / "predictions.csv").read_bytes()
    real = Predictor.predict_files

    def interrupted(self: Predictor, files: Sequence[Path], **how: Any) -> Iterator[Prediction]:
        yield from itertools.islice(real(self, files, **how), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_files", interrupted)
    capsys.readouterr()
    assert main(predict) == 130
    said = "lit-cnn: what was classified is in predictions.partial.csv\nlit-cnn: interrupted\n"
    assert capsys.readouterr().err == said
    assert (tmp_path / "predictions.csv").read_bytes() == whole
    assert (tmp_path / "predictions.partial.csv").read_bytes().splitlines() == whole.splitlines()[:4]
    assert not list(tmp_path.glob(".predictions*"))


def test_bad_images_in_python(mixed: dict[str, str], predictor: Predictor, tmp_path: Path) -> None:
    gray = load_digits().images[0]
    with pytest.raises(UsageError, match=r"^3 images: cannot be decoded: .*3\.png: .* or on_bad_image=skip$"):
        predictor.predict("mixed")
    with pytest.raises(UsageError, match=r"^on_bad_image=ignore: give raise or skip"):
        predictor.predict(gray, on_bad_image="ignore")  # type: ignore[arg-type]
    found = predictor.predict_folder("mixed", on_bad_image="skip", batch_size=3)
    assert isinstance(found, PredictionList) and len(found) == len(mixed)
    bad = [each for each in found if each.error is not None]
    names = ("1.png", "3.png", "5.png", "below/9.tif")  # 7.png has as many pixels as training allows
    assert [str(each.file) for each in bad] == [f"mixed/{name}" for name in names]
    assert all((each.label, each.probabilities) == ("", {}) and math.isnan(each.probability) for each in bad)
    assert str(bad[0]) == str(bad[0].error) and "truncated" in bad[0]._repr_html_() and "truncated" in str(found)
    frame = found.to_dataframe()
    assert list(frame) == ["file", "label", "probability", *predictor.class_names, "error"]
    assert frame["error"].notna().tolist() == frame["label"].isna().tolist() == [bool(each.error) for each in found]
    assert "truncated" in found._repr_html_()
    several = predictor.predict(["mixed/1.png", gray, Image.new("F", (4, 4)), "mixed/7.png"], on_bad_image="skip")
    assert isinstance(several, PredictionList) and [bool(each.error) for each in several] == [True, False, True, False]
    limit = pixel_limit()
    one_bad = predictor.predict("mixed/7.png", on_bad_image="skip", max_pixels=10)
    assert isinstance(one_bad, Prediction) and "more pixels than max_pixels=10" in str(one_bad)
    assert pixel_limit() == limit


def test_a_class_may_be_called_as_a_column() -> None:
    pair = ImageClassifier(
        ("error", "label"),
        4,
        1,
        "area",
        1.0,
        probabilities=lambda views: np.tile(np.array([0.25, 0.75], np.float32), (len(views), 1)),
    )
    frame = PredictionList([one(Predictor(pair), np.zeros((4, 4), np.uint8))]).to_dataframe()
    assert list(frame) == ["file", "label", "probability", "class error", "class label", "error"]
    assert frame.loc[0, ["label", "class error"]].tolist() == ["label", 0.25]


def test_images_may_have_as_many_pixels_as_in_training(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    assert load(checkpoint).classifier.max_pixels == MAX_PIXELS
    few = ImageClassifier(
        ("a",), 4, 1, "area", 1.0, lambda views: np.ones((len(views), 1), np.float32), max_pixels=1000
    )
    with pytest.raises(UsageError, match="more pixels than max_pixels=1000"):
        Predictor(few).predict("a.png")
    assert one(Predictor(replace(few, max_pixels=1200)), "a.png").label == "a"
    limit_pixels(1000)  # what an earlier data set allowed is not what this one does
    try:
        assert one(Predictor(replace(few, max_pixels=None)), "a.png").label == "a"
    finally:
        limit_pixels(MAX_PIXELS)
