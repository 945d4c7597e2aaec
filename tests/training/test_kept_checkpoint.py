"""A checkpoint of an earlier release loads for ever, and means what it meant."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.stored_options import completed
from lit_cnn.evaluation.predict import load_member
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.load import load_classifier
from lit_cnn.training.resume import config_digest
from tests.kept_checkpoint import KEPT, logits_of

EVERY_KEPT = sorted(KEPT.parent.glob("*.ckpt"))


@pytest.mark.parametrize("checkpoint", EVERY_KEPT, ids=lambda path: path.stem)
def test_a_kept_checkpoint_gives_the_logits_that_it_gave(checkpoint: Path) -> None:
    stored = torch.tensor(json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8")))
    assert stored.shape == (20, 10) and stored.std() > 1
    # Another processor rounds otherwise, and nothing more.
    torch.testing.assert_close(logits_of(checkpoint), stored, rtol=1e-4, atol=1e-4)


def test_there_is_one_and_it_is_small() -> None:
    assert KEPT in EVERY_KEPT
    assert sum(path.stat().st_size for path in KEPT.parent.iterdir()) < 1e6


def test_the_command_line_takes_it_with_the_images_that_it_was_tested_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt_path", str(KEPT)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test/acc ")]
    with torch.inference_mode():
        model, of_run = load_classifier(KEPT)
        images, targets = zip(*load_member(KEPT).data.test_dataloader(), strict=True)
        accuracy = (model(torch.cat(images)).argmax(1) == torch.cat(targets)).double().mean()
    assert accuracy > 0.8 and float(line.split()[1]) == pytest.approx(float(accuracy), abs=1e-4)
    for data in (load_member(KEPT).data, ImageDataModule(**completed(yaml.safe_load(of_run["config"])["data"]))):
        assert data.digests == of_run["digests"]


def test_a_run_of_its_configuration_has_its_digest_still() -> None:
    record = load_checkpoint(KEPT)["lit_cnn"]
    config = yaml.safe_load(record["config"])
    assert config_digest(config, record["digests"]["data"]) == record["config_digest"]
    config["data"] = completed(config["data"])
    assert config_digest(config, record["digests"]["data"]) == record["config_digest"]
    config["data"]["split_scheme"] = 2
    assert config_digest(config, record["digests"]["data"]) != record["config_digest"]


def test_a_flipped_byte_of_it_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(KEPT.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged.ckpt: was changed after it was written \(SHA-256 differs\)"):
        logits_of(damaged)
