"""Pretrained weights that are not to be had end in one line."""

import socket
import time

import pytest
from huggingface_hub import constants

from lit_cnn.core.errors import UsageError
from lit_cnn.training.classifier import LitClassifier


def test_no_network_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"weights=pretrained: the weights of resnet10t .*give a file"):
        LitClassifier(arch="resnet10t", weights="pretrained", num_classes=3, in_channels=3, image_size=32)


@pytest.mark.parametrize("arch", ["resnet10t", "torchvision/shufflenet_v2_x0_5"])
def test_a_proxy_that_never_answers_is_one_line_in_seconds(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UsageError, match=r"weights=pretrained: .*give a file"):
            LitClassifier(arch=arch, weights="pretrained", num_classes=3, in_channels=3, image_size=32)
    assert time.monotonic() - start < 5
