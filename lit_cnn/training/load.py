"""A trained classifier out of its checkpoint."""

from pathlib import Path
from typing import Any

from lit_cnn.core.errors import UsageError
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier


def load_classifier(path: Path) -> tuple[LitClassifier, dict[str, Any]]:
    """Rebuilds a classifier from its checkpoint.

    Returns:
        The classifier in eval mode on the CPU, and the checkpoint's record of its run.

    Raises:
        UsageError: If the file is no checkpoint of lit_cnn.
    """
    checkpoint = load_checkpoint(path)
    if "lit_cnn" not in checkpoint:
        raise UsageError("ckpt_path", path, "holds no record of lit_cnn", "give one of a LitClassifier")
    # The weights come from the file: nothing is fetched that would only be overwritten.
    model = LitClassifier(**{**checkpoint["hyper_parameters"], "weights": None, "transfer": None})
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), checkpoint["lit_cnn"]
