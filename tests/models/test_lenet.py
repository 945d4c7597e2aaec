"""LeNet-5: the paper's numbers, exactly."""

import pytest
import torch
from timm.models import group_parameters

from lit_cnn.models.lenet import LeNet5


def build_on_meta(image_size: int, in_channels: int = 1) -> LeNet5:
    with torch.device("meta"):
        return LeNet5(num_classes=10, in_channels=in_channels, image_size=image_size)


@pytest.mark.parametrize("image_size", [28, 32])
def test_has_the_papers_layers_and_61706_parameters(image_size: int) -> None:
    net = build_on_meta(image_size)
    sizes = {name: sum(parameter.numel() for parameter in layer.parameters()) for name, layer in net.named_children()}
    # C1: (25 + 1) * 6; C3, fully connected: (6 * 25 + 1) * 16; C5: (16 * 25 + 1) * 120; F6: (120 + 1) * 84.
    assert sizes == {"conv1": 156, "conv2": 2_416, "fc1": 48_120, "fc2": 10_164, "classifier": 850}
    assert sum(sizes.values()) == 61_706


@pytest.mark.parametrize("image_size", [28, 32])
def test_maps_have_the_papers_sizes(image_size: int) -> None:
    net = build_on_meta(image_size)
    images = torch.empty(2, 1, image_size, image_size, device="meta")
    assert net.conv1(images).shape == (2, 6, 28, 28)
    assert net.forward_features(images).shape == (2, 16, 5, 5)
    assert net(images).shape == (2, 10)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(("image_size", "side"), [(12, 1), (31, 5), (33, 5), (64, 13)])
def test_other_sizes_widen_the_first_fully_connected_layer(image_size: int, side: int, in_channels: int) -> None:
    net = build_on_meta(image_size, in_channels)
    assert net.fc1.in_features == 16 * side * side
    assert net(torch.empty(1, in_channels, image_size, image_size, device="meta")).shape == (1, 10)


def test_an_image_below_12_px_is_refused() -> None:
    with pytest.raises(ValueError, match="12 px or more, not 11"):
        LeNet5(num_classes=10, image_size=11)


def test_pre_logits_are_what_the_classifier_sees() -> None:
    net = LeNet5(num_classes=10)
    maps = net.forward_features(torch.randn(1, 1, 28, 28))
    features = net.forward_head(maps, pre_logits=True)
    assert features.shape == (1, 84)
    assert features.min() >= 0  # after the ReLU
    torch.testing.assert_close(net.get_classifier()(features), net.forward_head(maps))


def test_each_layer_is_a_group_of_its_own() -> None:
    net = LeNet5(num_classes=10)
    groups = group_parameters(net, net.group_matcher()).values()
    layers = [[name.removesuffix(".weight").removesuffix(".bias") for name in group] for group in groups]
    assert layers == [["conv1"] * 2, ["conv2"] * 2, ["fc1"] * 2, ["fc2"] * 2, ["classifier"] * 2]
