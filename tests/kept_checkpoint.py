"""`python -m tests.kept_checkpoint`: makes the checkpoint that every later release must load, and its logits.

LeNet-5 on the digits as `lit-cnn fit` writes it, and its logits of the first 20 test images. Made once for each format
of checkpoints; never made again for one that is there.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import yaml

from lit_cnn.cli import main as lit_cnn
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.stored_options import completed
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "kept" / "lenet5_digits_1.ckpt"


def logits_of(checkpoint: Path) -> torch.Tensor:
    """Returns the logits `(20, 10)`, float32, of the first test images of the digits."""
    loaded = load_checkpoint(checkpoint)
    hparams = loaded["hyper_parameters"]
    hparams["weights"] = hparams["transfer"] = None
    model = LitClassifier(**hparams)
    model.load_state_dict(loaded["state_dict"])
    data = ImageDataModule(**completed(yaml.safe_load(loaded["lit_cnn"]["config"])["data"]))
    images, _ = next(iter(data.test_dataloader()))
    with torch.inference_mode():
        return model.eval()(images[:20])


def main() -> None:
    """Trains, and writes both files into tests/kept."""
    if KEPT.exists():
        raise SystemExit(f"{KEPT} is there: it is to be loaded for ever, not made again")
    KEPT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        config = ROOT / "configs" / "experiment" / "lenet5_scratch_digits.yaml"
        options = ["--trainer.max_epochs=3", "--trainer.precision=32-true", "--data.num_workers=0"]
        if lit_cnn(["fit", f"--config={config}", *options]) != 0:
            raise SystemExit("lit-cnn fit failed")
        (best,) = Path("mlruns").glob("journal/*/best.ckpt")
        shutil.copyfile(best, KEPT)
        KEPT.with_suffix(".json").write_text(json.dumps(logits_of(KEPT).tolist()) + "\n", encoding="utf-8")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
