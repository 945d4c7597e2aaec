"""LeNet-5: the paper's numbers, exactly."""

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from lit_cnn.models.lenet import LeNet5


def build_on_meta(image_size: int, in_channels: int = 1) -> LeNet5:
    with torch.device("meta"):
        return LeNet5(num_classes=10, in_channels=in_channels, image_size=image_size)


def count_parameters(net: nn.Module) -> dict[str, int]:
    """The number of parameters of each layer that has any, by the layer's name."""
    counts = {name: sum(parameter.numel() for parameter in layer.parameters()) for name, layer in net.named_children()}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("image_size", [28, 32])
def test_has_the_papers_layers_and_61706_parameters(image_size: int) -> None:
    net = build_on_meta(image_size)
    sizes = count_parameters(net)
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


def test_without_batch_norm_nothing_but_the_paper_is_in_the_weights() -> None:
    # What a fixed seed draws is part of what a past run can be repeated from.
    torch.manual_seed(0)
    net = LeNet5(num_classes=10)
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 6, 5),
        "conv2": nn.Conv2d(6, 16, 5),
        "fc1": nn.Linear(400, 120),
        "fc2": nn.Linear(120, 84),
        "classifier": nn.Linear(84, 10),
    }
    drawn = {f"{name}.{kind}": value for name, layer in layers.items() for kind, value in layer.state_dict().items()}
    assert list(net.state_dict()) == list(drawn)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in drawn.items())


def test_batch_norm_takes_the_place_of_the_hidden_biases() -> None:
    net = LeNet5(num_classes=10, batch_norm=True)
    counts = count_parameters(net)
    # Scale and shift for each channel where a bias was.
    assert counts == {
        "conv1": 150,
        "conv1_norm": 12,
        "conv2": 2_400,
        "conv2_norm": 32,
        "fc1": 48_000,
        "fc1_norm": 240,
        "fc2": 10_080,
        "fc2_norm": 168,
        "classifier": 850,
    }
    assert sum(counts.values()) == 61_932


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_batch_norm_stands_between_each_hidden_layer_and_its_relu(layer: str) -> None:
    torch.manual_seed(0)
    net = LeNet5(num_classes=10, batch_norm=True).train()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    norm = net.get_submodule(f"{layer}_norm")
    norm.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    net(3 * torch.randn(8, 1, 28, 28) + 1)
    ((sums, normalised),) = seen
    assert sums.min() < 0  # no ReLU before
    over_batch = [axis for axis in range(normalised.ndim) if axis != 1]
    torch.testing.assert_close(normalised.mean(over_batch), torch.zeros(normalised.shape[1]), rtol=0, atol=1e-5)


def test_batch_norm_belongs_to_the_group_of_its_layer() -> None:
    net = LeNet5(num_classes=10, batch_norm=True)
    groups = group_parameters(net, net.group_matcher()).values()
    assert [sorted({name.split(".")[0] for name in group}) for group in groups] == [
        ["conv1", "conv1_norm"],
        ["conv2", "conv2_norm"],
        ["fc1", "fc1_norm"],
        ["fc2", "fc2_norm"],
        ["classifier"],
    ]
