"""`lit-cnn predict` on a folder."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.sources import load_digits
from lit_cnn.training.load import load_classifier
from tests.runs import fit, tracked_runs


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The best checkpoint of a short run in the test's folder."""
    assert fit("--trainer.max_epochs=3", "--test_after_fit=false") == 0
    (run,) = tracked_runs(tmp_path, "fit")
    return next(tmp_path.glob(f"mlruns/artifacts/*/{run.run_id}/artifacts/checkpoints/best.ckpt"))


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
    assert "--folder empty: holds no images" in capsys.readouterr().err
