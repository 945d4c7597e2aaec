"""Pretrained weights that are not to be had end in one line."""

import pytest

from lit_cnn.classifier import LitClassifier
from lit_cnn.errors import UsageError


def test_no_network_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--model.weights pretrained: the weights of resnet10t .*give a file"):
        LitClassifier(arch="resnet10t", weights="pretrained", num_classes=3, in_channels=3, image_size=32)
