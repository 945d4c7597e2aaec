"""What `lit-cnn best` tries."""

import math

import pytest

from lit_cnn.search.candidates import candidates


@pytest.mark.parametrize(("num_images", "epochs"), [(10, 300), (33, 150), (112, 75), (1000, 20)])
def test_few_images_are_seen_in_more_epochs(num_images: int, epochs: int) -> None:
    tried = candidates({"resnet18": "offline"}, ["head_only", "full"], (), {"resnet18": 224}, 300, num_images, 4, 3)
    assert [each.epochs for each in tried] == [epochs] * 2
    for each in tried:
        (batch_size,) = [int(text.partition("=")[2]) for text in each.options if text.startswith("--data.batch_size")]
        assert each.epochs * math.ceil(num_images / batch_size) >= 300
