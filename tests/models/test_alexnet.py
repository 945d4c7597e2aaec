"""AlexNet: the paper's numbers, exactly."""

from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from lit_cnn.models.alexnet import AlexNet

CONVOLUTIONS = ["conv1", "conv2", "conv3", "conv4", "conv5"]
HIDDEN = [*CONVOLUTIONS, "fc1", "fc2"]


def build_on_meta(image_size: int = 227, in_channels: int = 3, num_classes: int = 1000, **options: Any) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(num_classes, in_channels, image_size, **options)


def layer_of(net: AlexNet, name: str) -> Any:
    return net.get_submodule(name)


def count_parameters(net: nn.Module) -> dict[str, int]:
    """The number of parameters of each layer that has any, by the layer's name."""
    counts = {name: sum(parameter.numel() for parameter in layer.parameters()) for name, layer in net.named_children()}
    return {name: count for name, count in counts.items() if count}


def test_has_the_papers_layers_and_60965224_parameters() -> None:
    counts = count_parameters(build_on_meta())
    assert counts == {
        "conv1": (3 * 11 * 11 + 1) * 96,
        "conv2": (48 * 5 * 5 + 1) * 256,
        "conv3": (256 * 3 * 3 + 1) * 384,
        "conv4": (192 * 3 * 3 + 1) * 384,
        "conv5": (192 * 3 * 3 + 1) * 256,
        "fc1": (256 * 6 * 6 + 1) * 4096,
        "fc2": (4096 + 1) * 4096,
        "classifier": (4096 + 1) * 1000,
    }
    assert sum(counts.values()) == 60_965_224


def test_maps_have_the_papers_sizes() -> None:
    net = build_on_meta()
    shapes = {}
    for name in CONVOLUTIONS:
        layer = net.get_submodule(name)
        layer.register_forward_hook(lambda _module, _args, maps, name=name: shapes.update({name: tuple(maps.shape)}))
    images = torch.empty(2, 3, 227, 227, device="meta")
    assert net.forward_features(images).shape == (2, 256, 6, 6)
    assert net(images).shape == (2, 1000)
    assert shapes == {
        "conv1": (2, 96, 55, 55),
        "conv2": (2, 256, 27, 27),
        "conv3": (2, 384, 13, 13),
        "conv4": (2, 384, 13, 13),
        "conv5": (2, 256, 13, 13),
    }


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(("image_size", "side"), [(67, 1), (98, 1), (99, 2), (224, 5), (226, 5), (227, 6), (256, 6)])
def test_other_sizes_change_the_first_fully_connected_layer(image_size: int, side: int, in_channels: int) -> None:
    net = build_on_meta(image_size, in_channels)
    assert net.fc1.in_features == 256 * side * side
    assert net(torch.empty(1, in_channels, image_size, image_size, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("image_size", [1, 32, 66])
def test_an_image_below_67_px_is_refused(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"67 px or more, not {image_size}"):
        AlexNet(num_classes=10, image_size=image_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width 0.0: give a number above 0"),
        ({"width": -1.0}, "width -1.0: give a number above 0"),
        ({"width": float("nan")}, "width nan: give a number above 0"),
        ({"drop_rate": -0.1}, "drop_rate -0.1: give a number from 0 to below 1"),
        ({"drop_rate": 1.0}, "drop_rate 1.0: give a number from 0 to below 1"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_on_meta(**options)


@pytest.mark.parametrize(("layer", "seen"), [("conv2", 128), ("conv4", 192), ("conv5", 128)])
def test_two_halves_of_a_grouped_layer_do_not_see_each_other(layer: str, seen: int) -> None:
    conv = AlexNet(num_classes=0, image_size=67, width=0.25).get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    maps = torch.randn(1, conv.in_channels, 5, 5)
    changed = maps.clone()
    changed[:, : conv.in_channels // 2] += 1
    same = (conv(maps) == conv(changed)).flatten(2).all(2)[0]
    assert same.tolist() == [False] * (seen // 4) + [True] * (seen // 4)


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_the_other_convolutions_see_all_maps(layer: str) -> None:
    assert layer_of(build_on_meta(), layer).groups == 1


def test_response_normalisation_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    maps = 100 * torch.rand(2, 8, 3, 4)  # large, so that what is added to k counts
    wanted = torch.empty_like(maps)
    for i in range(8):
        neighbours = maps[:, max(0, i - 2) : min(8 - 1, i + 2) + 1]
        wanted[:, i] = maps[:, i] / (2 + 1e-4 * neighbours.square().sum(1)) ** 0.75
    normalised = AlexNet(num_classes=10, image_size=67, width=0.1).lrn(maps)
    torch.testing.assert_close(normalised, wanted)


def test_response_normalisation_follows_the_first_two_convolutions_if_wanted() -> None:
    images = torch.rand(1, 3, 67, 67)
    calls = {}
    for lrn in (True, False):
        net = AlexNet(num_classes=10, image_size=67, width=0.25, lrn=lrn)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        net.lrn.register_forward_hook(lambda _module, args, output, seen=seen: seen.append((args[0], output)))
        net(images)
        calls[lrn] = [(tuple(before.shape), torch.equal(before, after)) for before, after in seen]
    assert calls[True] == [((1, 24, 15, 15), False), ((1, 64, 7, 7), False)]
    assert calls[False] == [((1, 24, 15, 15), True), ((1, 64, 7, 7), True)]


def test_pooling_overlaps() -> None:
    net = AlexNet(num_classes=10, image_size=67, width=0.1)
    (pooled,) = net.pool(torch.arange(49.0).view(1, 7, 7))
    # The largest of rows and columns 0-2, 2-4 and 4-6.
    assert pooled.tolist() == [[16, 18, 20], [30, 32, 34], [44, 46, 48]]


@pytest.mark.parametrize("drop_rate", [0.0, 0.25, 0.5])
def test_dropout_zeroes_outputs_of_the_hidden_layers_in_training_only(drop_rate: float) -> None:
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, image_size=67, drop_rate=drop_rate)
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            layer.weight.zero_()
    maps = torch.randn(4, 256, 1, 1)
    features = net.train().forward_head(maps, pre_logits=True)
    # The bias of 1 goes through the ReLU; what is kept is scaled up.
    torch.testing.assert_close(features[features > 0].unique(), torch.tensor([1 / (1 - drop_rate)]))
    assert (features == 0).float().mean().item() == pytest.approx(drop_rate, abs=0.02)
    assert net.eval().forward_head(maps, pre_logits=True).unique().tolist() == [1]


def test_dropout_is_drawn_for_both_hidden_layers() -> None:
    net = AlexNet(num_classes=10, image_size=67, width=0.1).train()
    calls: list[int] = []
    net.dropout.register_forward_hook(lambda _module, args, _output: calls.append(args[0].shape[1]))
    net(torch.rand(1, 3, 67, 67))
    assert calls == [net.fc1.out_features, net.fc2.out_features]


def test_weights_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = AlexNet(num_classes=1000)
    biases = {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc1": 1, "fc2": 1, "classifier": 0}
    for name, bias in biases.items():
        layer = layer_of(net, name)
        assert layer.weight.mean().item() == pytest.approx(0, abs=3e-4)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert (layer.bias == bias).all()


def test_narrow_layers_start_with_sums_that_spread_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = AlexNet(num_classes=1000, in_channels=1, image_size=99, width=0.25)
    papers_inputs = {"conv1": 363, "conv2": 1200, "conv3": 2304, "conv4": 1728, "conv5": 1728, "fc1": 9216}
    for name, inputs in {**papers_inputs, "fc2": 4096, "classifier": 4096}.items():
        weight = layer_of(net, name).weight
        assert weight.std().item() * weight[0].numel() ** 0.5 == pytest.approx(0.01 * inputs**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("width", "channels"),
    [(0.5, [48, 128, 192, 192, 128, 2048, 2048]), (0.11, [10, 28, 42, 42, 28, 450, 450]), (1e-9, [2] * 7)],
)
def test_width_scales_every_hidden_layer_to_an_even_number(width: float, channels: list[int]) -> None:
    net = build_on_meta(67, width=width)
    assert [layer_of(net, name).weight.shape[0] for name in HIDDEN] == channels
    assert (net.num_features, net.head_hidden_size) == (channels[4], channels[6])
    assert net(torch.empty(1, 3, 67, 67, device="meta")).shape == (1, 1000)


def test_batch_norm_takes_the_place_of_the_hidden_biases() -> None:
    plain, counts = count_parameters(build_on_meta()), count_parameters(build_on_meta(batch_norm=True))
    outputs = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc1": 4096, "fc2": 4096}
    for name, count in outputs.items():
        assert counts.pop(f"{name}_norm") == 2 * count
        assert counts.pop(name) == plain[name] - count
    assert counts == {"classifier": plain["classifier"]}
    total = sum(count_parameters(build_on_meta(batch_norm=True)).values())
    assert total == 60_965_224 + sum(outputs.values()) == 60_974_792


@pytest.mark.parametrize("layer", HIDDEN)
def test_batch_norm_stands_between_each_hidden_layer_and_its_relu(layer: str) -> None:
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, image_size=67, width=0.1, batch_norm=True, drop_rate=0.0).train()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    norm = net.get_submodule(f"{layer}_norm")
    norm.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    net(100 * torch.randn(8, 3, 67, 67) + 1)
    ((sums, normalised),) = seen
    assert sums.min() < 0  # no ReLU before
    over_batch = [axis for axis in range(normalised.ndim) if axis != 1]
    torch.testing.assert_close(normalised.mean(over_batch), torch.zeros(normalised.shape[1]), rtol=0, atol=1e-5)


def test_batch_norm_gives_every_parameter_a_gradient() -> None:
    net = AlexNet(num_classes=10, image_size=67, width=0.1, batch_norm=True).train()
    net(torch.randn(2, 3, 67, 67)).square().mean().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_layer_is_a_group_of_its_own(batch_norm: bool) -> None:
    net = build_on_meta(batch_norm=batch_norm)
    groups = group_parameters(net, net.group_matcher()).values()
    layers = [{name.split(".")[0].removesuffix("_norm") for name in group} for group in groups]
    assert layers == [{name} for name in [*HIDDEN, "classifier"]]
