"""The scale that validation sees is one from training to the export; in what was made before, it is that of before."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lit_cnn
from lit_cnn.cli import main
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.evaluation.multi_crop import VIEWS
from lit_cnn.evaluation.predict import load_member, store_key
from lit_cnn.evaluation.stored_logits import read_record, write_record
from lit_cnn.portable import read_card
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint
from tests.kept_checkpoint import KEPT
from tests.runs import TrackedRun, copy_empty_store, fit, inside, tracked_runs

RANDOM = ("--data.train_crop=random", "--data.augment=null")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """A short run on random squares of images at 256 / 224 of their size."""
    folder = tmp_path_factory.mktemp("random_crop")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    with inside(folder):
        assert fit(*RANDOM) == 0
    (run,) = tracked_runs(folder)
    return run


@pytest.fixture
def in_folder(run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = next(parent.parent for parent in run.artifacts.parents if parent.name == "mlruns")
    monkeypatch.chdir(folder)
    return folder


def best_of(run: TrackedRun) -> Path:
    return run.artifacts / "checkpoints" / "best.ckpt"


def test_every_command_sees_what_validation_saw(
    run: TrackedRun, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_checkpoint(best_of(run))["hyper_parameters"]["crop_pct"] == 224 / 256
    member = load_member(best_of(run))
    images, labels = member.data.image_set.images, member.data.image_set.labels
    indices = np.sort(member.data.splits.test)
    views = np.stack([resize_and_center_crop(images[index], 32, "area", 224 / 256) for index in indices])
    with torch.inference_mode():
        expected = member.model(torch.from_numpy(views.transpose(0, 3, 1, 2).copy())).softmax(1).numpy()
    accuracy = float((expected.argmax(1) == labels[indices]).mean())
    assert run.metrics["test/acc"] == pytest.approx(accuracy)

    assert main(["test", f"--ckpt_path=runs:/{run.run_id}"]) == 0
    assert f"{accuracy:.4f}" in capsys.readouterr().out
    assert main(["test", f"--ckpt_path=runs:/{run.run_id}", "--data.crop_pct=1"]) == 0
    assert f"{accuracy:.4f}" not in capsys.readouterr().out

    table = lit_cnn.ensemble([run.run_id], views=[1, 10])
    assert table.lines[0].accuracy.mean == pytest.approx(accuracy)
    card = lit_cnn.export(run.run_id, "exported", "torch")
    assert card.crop_pct == read_card(Path("exported")).crop_pct == 224 / 256
    for source in (best_of(run), Path("exported")):
        predictions = lit_cnn.load(source).predict([images[index] for index in indices[:20]])
        found = [list(each.probabilities.values()) for each in predictions]  # type: ignore[union-attr]
        np.testing.assert_allclose(found, expected[:20], atol=1e-5)


def test_what_an_earlier_version_wrote_saw_whole_images(run: TrackedRun, in_folder: Path) -> None:
    checkpoint = load_checkpoint(best_of(run))
    del checkpoint["hyper_parameters"]["crop_pct"]
    config = checkpoint["lit_cnn"]["config"]
    assert "crop_pct: null" in config
    checkpoint["lit_cnn"]["config"] = config.replace("  crop_pct: null\n", "")
    save_checkpoint(checkpoint, Path("earlier.ckpt"))
    member = load_member(Path("earlier.ckpt"))
    assert member.data.crop_pct == member.model.hparams["crop_pct"] == member.record.preprocessing["crop_pct"] == 1
    assert lit_cnn.load("earlier.ckpt").classifier.crop_pct == 1

    record = member.record
    without = {name: value for name, value in record.preprocessing.items() if name != "crop_pct"}
    write_record(Path("record.json"), replace(record, preprocessing=without))
    assert read_record(Path("record.json")) == record

    written = json.loads(Path("exported", "model.json").read_text(encoding="utf-8"))
    del written["crop_pct"]
    Path("exported", "model.json").write_text(json.dumps(written), encoding="utf-8")
    assert read_card(Path("exported")).crop_pct == 1


def test_logits_that_were_stored_before_are_found(run: TrackedRun, in_folder: Path) -> None:
    kept = load_member(KEPT)
    assert store_key(kept, "x", VIEWS[1][0]) == "4c75797ae1562330d4eb5db93a4ed4bfc79a835fddd03dec8df2db18db830d6c"
    record = replace(kept.record, preprocessing={**kept.record.preprocessing, "crop_pct": 0.875})
    other = replace(kept, record=record)
    assert store_key(other, "images", VIEWS[1][0]) != store_key(kept, "images", VIEWS[1][0])
