"""Pretrained weights that are not to be had end in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_cnn.classifier import LitClassifier
from lit_cnn.errors import UsageError
from lit_cnn.models import create_model

ARGUMENTS = {"num_classes": 3, "in_channels": 3, "image_size": 32}


def test_no_network_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--model.weights pretrained: the weights of resnet10t .*give a file"):
        LitClassifier(arch="resnet10t", weights="pretrained", num_classes=3, in_channels=3, image_size=32)


def test_weights_from_a_file(tmp_path: Path) -> None:
    net = create_model("resnet10t", **ARGUMENTS)  # type: ignore[arg-type]
    file = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), file)
    loaded = LitClassifier(arch="resnet10t", weights=str(file), num_classes=3, in_channels=3, image_size=32).net
    assert torch.equal(loaded.state_dict()["conv1.0.weight"], net.state_dict()["conv1.0.weight"])


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"other": torch.zeros(3)}, file)
    with pytest.raises(UsageError, match=r"--model.weights .*weights.safetensors: does not hold the weights"):
        LitClassifier(arch="resnet10t", weights=str(file), num_classes=3, in_channels=3, image_size=32)
    with pytest.raises(UsageError, match="no such file"):
        LitClassifier(arch="resnet10t", weights="absent.pth", num_classes=3, in_channels=3, image_size=32)
