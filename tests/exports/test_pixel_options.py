"""`pixel_range` and `background` go with a run: into its checkpoint, its export and what both are given to classify."""

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas
import pytest
from PIL import Image

import lit_cnn
from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.pixel_values import PixelOptions
from lit_cnn.data.sources import read_image
from lit_cnn.evaluation.predict import _PREPROCESSING, load_member
from lit_cnn.evaluation.predictor import Prediction, Predictor
from lit_cnn.exports.load import load
from lit_cnn.portable import CARD, read_card
from lit_cnn.training.classifier import LitClassifier
from tests.data.test_pixel_findings import folder, of_12_bits, strokes

pytestmark = pytest.mark.usefixtures("empty_store")


def probabilities(predictor: Predictor, image: Any) -> list[float]:
    found = predictor.predict(image)
    assert isinstance(found, Prediction)
    return list(found.probabilities.values())


def test_a_run_keeps_both_and_decodes_by_them_wherever_it_goes(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", of_12_bits, 8)
    for name in ("across", "down"):
        for number in range(8):
            shares = np.random.default_rng(number).uniform(0, 1, (16, 16))
            strokes(root / name / f"stroke{number}.png", shares if name == "down" else 1 - shares / 2)
    options = {"pixel_range": [0, 4095], "background": "white"}
    data = ImageDataModule("image_folder", root, num_workers=0, **options)  # type: ignore[arg-type]
    model = LitClassifier.for_data(data, arch="lenet5")
    run = lit_cnn.fit(model, data, max_epochs=1)

    predictor, network = load(run), model.eval()
    gray, stroke = root / "across" / "00.png", root / "down" / "stroke0.png"
    for file in (gray, stroke):
        seen = read_image(file, 3, PixelOptions((0, 4095), (255, 255, 255)))
        assert seen.max() > 200 > 40 > read_image(file, 3).max()
        expected = probabilities(predictor, seen)
        assert probabilities(predictor, file) == pytest.approx(expected, abs=1e-6)
        with Image.open(file) as image:
            assert probabilities(predictor, image) == pytest.approx(expected, abs=1e-6)
    values = cv2.imread(str(gray), cv2.IMREAD_UNCHANGED)
    assert probabilities(predictor, values) == pytest.approx(probabilities(predictor, gray), abs=1e-6)
    assert main(["test", "--ckpt_path", str(run.checkpoint)]) in (0, None)

    card = lit_cnn.export(run, tmp_path / "export", "torch")  # compares it with the stored logits of test
    assert (card.pixel_range, card.background) == ([0.0, 4095.0], [255, 255, 255])
    exported = load(tmp_path / "export")
    for file in (gray, stroke):
        assert probabilities(exported, file) == pytest.approx(probabilities(predictor, file), abs=1e-5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would rather have its own type hints
        from lit_cnn.tracking.pyfunc_model import ImageModel
    served = ImageModel()
    served.classifier = exported.classifier
    contents = pandas.DataFrame({"image": [file.read_bytes() for file in (gray, stroke)]})
    for row, file in zip(served.predict(None, contents)["probabilities"], (gray, stroke), strict=True):
        assert list(row.values()) == pytest.approx(probabilities(predictor, file), abs=1e-5)

    member = load_member(run.checkpoint)  # type: ignore[arg-type]
    assert member.record.preprocessing.keys() - set(_PREPROCESSING) == {"pixel_range", "background"}
    other = ImageDataModule("image_folder", root, num_workers=0)
    with pytest.raises(UsageError, match=r"^pixel_range=.*the data has None; background differs too"):
        lit_cnn.fit(network, other, max_epochs=1)


def test_what_was_made_before_there_were_any_is_as_it_was(tmp_path: Path) -> None:
    kept = Path(__file__).parent.parent / "kept" / "lenet5_digits_1.ckpt"
    record = load_member(kept).record
    assert record.preprocessing.keys() == set(_PREPROCESSING)  # the key of its stored logits
    run = lit_cnn.fit(
        LitClassifier.for_data(data := ImageDataModule("digits", num_workers=0), arch="lenet5"), data, max_epochs=1
    )
    lit_cnn.export(run, tmp_path / "export", "torch")
    written = json.loads((tmp_path / "export" / CARD).read_text(encoding="utf-8"))
    assert not {"pixel_range", "background"} & written.keys()
    assert read_card(tmp_path / "export").background is None
    for name, wrong in (("background", [0, 0]), ("pixel_range", [4.0, 1.0]), ("pixel_range", None)):
        (tmp_path / "export" / CARD).write_text(json.dumps({**written, name: wrong}), encoding="utf-8")
        with pytest.raises(UsageError, match=name):
            read_card(tmp_path / "export")
