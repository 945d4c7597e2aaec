"""Network in Network: the released definition's numbers; a 1x1 convolution is one Linear at each position."""

from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from lit_cnn.models.nin import NetworkInNetwork, conv1x1, with_relu


def build_on_meta(in_channels: int = 3, image_size: int = 32, **options: Any) -> Any:
    with torch.device("meta"):
        return NetworkInNetwork(num_classes=10, in_channels=in_channels, image_size=image_size, **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_has_the_released_layers_and_966986_parameters() -> None:
    net = build_on_meta()
    sizes = [count(layer) for stage in (net.stage1, net.stage2, net.stage3) for layer in stage]
    # (inputs * 25 + 1) * outputs for the 5x5, (inputs + 1) * outputs for the 1x1, (inputs * 9 + 1) * outputs.
    assert sizes == [14_592, 30_880, 15_456, 460_992, 37_056, 37_056, 331_968, 37_056]
    assert count(net.classifier) == 1_930
    assert count(net) == 966_986


def test_maps_have_the_released_definitions_sizes() -> None:
    net, images = build_on_meta(), torch.empty(2, 3, 32, 32, device="meta")
    seen = []
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.register_forward_hook(lambda stage, args, output: seen.append((*args[0].shape, *output.shape[1:])))
    assert net(images).shape == (2, 10)
    assert seen == [(2, 3, 32, 32, 96, 32, 32), (2, 96, 16, 16, 192, 16, 16), (2, 192, 8, 8, 192, 8, 8)]


@pytest.mark.parametrize(("image_size", "side"), [(4, 1), (8, 2), (28, 7), (33, 8), (64, 16), (100, 25)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_takes_images_of_any_size(image_size: int, side: int, in_channels: int) -> None:
    net = build_on_meta(in_channels, image_size)
    images = torch.empty(1, in_channels, image_size, image_size, device="meta")
    assert net.forward_features(images).shape == (1, 192, side, side)
    assert net(images).shape == (1, 10)


def test_width_and_batch_norm_change_the_layers() -> None:
    net = build_on_meta(width=0.25, batch_norm=True)
    assert [layer[0].out_channels for layer in net.stage1] == [48, 40, 24]
    assert [[type(part) for part in layer] for layer in net.stage3] == [[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]] * 2
    assert not any(name.endswith("0.bias") for name, _ in net.named_parameters())
    # A weight and a bias of BatchNorm in place of a bias of the convolution.
    assert count(build_on_meta(batch_norm=True)) == 966_986 + 192 + 160 + 96 + 5 * 192
    assert build_on_meta(width=0.001).num_features == 1


@pytest.mark.parametrize("drop_rate", [0.0, 0.25])
def test_dropout_follows_each_pooling(drop_rate: float) -> None:
    net = NetworkInNetwork(num_classes=10, width=0.25, drop_rate=drop_rate).train()
    zeros = []
    net.dropout.register_forward_hook(
        lambda layer, args, output: zeros.append(((output == 0) & (args[0] != 0)).sum() / (args[0] != 0).sum())
    )
    net(torch.randn(4, 3, 32, 32))
    assert zeros == pytest.approx([drop_rate] * 2, abs=0.03)


@pytest.mark.parametrize("out_channels", [3, 8, 20], ids=["shrinks", "keeps", "grows"])
def test_conv1x1_is_one_linear_at_each_position(out_channels: int) -> None:
    conv, linear = conv1x1(8, out_channels), nn.Linear(8, out_channels)
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    maps = torch.randn(2, 8, 5, 7)
    seen = conv(maps)
    assert seen.shape == (2, out_channels, 5, 7)
    for row in range(5):
        for column in range(7):
            torch.testing.assert_close(seen[:, :, row, column], linear(maps[:, :, row, column]))


def test_conv1x1_can_have_no_bias() -> None:
    assert conv1x1(8, 3, bias=False).bias is None
    assert count(conv1x1(8, 3)) == 27


def test_with_relu_keeps_the_size_of_values() -> None:
    torch.manual_seed(0)
    layer: Any = with_relu(nn.Conv2d(64, 200, 3), batch_norm=False)
    assert layer[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert layer[0].bias.count_nonzero() == 0
    squares = layer(torch.randn(1, 64, 20, 20)).square().mean()
    assert squares.item() == pytest.approx(1, rel=0.05), "the mean square of what it was given"


def test_logits_are_the_means_of_class_maps() -> None:
    net: Any = NetworkInNetwork(num_classes=10, width=0.25).eval()
    last = conv1x1(net.num_features, 10)
    last.load_state_dict({"weight": net.classifier.weight[:, :, None, None], "bias": net.classifier.bias})
    features = net.forward_features(torch.randn(2, 3, 32, 32))
    class_maps = last(features)
    assert class_maps.shape == (2, 10, 8, 8)
    torch.testing.assert_close(net.forward_head(features), class_maps.mean((2, 3)))


def test_poolings_are_max_then_average_in_caffes_ceil_mode() -> None:
    net: Any = NetworkInNetwork(num_classes=10).eval()
    net.stage1 = net.stage2 = net.stage3 = nn.Identity()
    # Only the last window of either pooling sees the last pixel.
    images = torch.zeros(1, 1, 16, 16)
    images[0, 0, 15, 15] = 1
    pooled = net.forward_features(images)
    assert pooled.shape == (1, 1, 4, 4)
    # The last windows have 2 x 2 pixels, as the edge cuts them off, and Caffe divides by these 4, not by 9.
    assert pooled[0, 0, 3, 3] == 1 / 4
    assert pooled.count_nonzero() == 1
    torch.testing.assert_close(net.forward_features(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 3}, "4 px or more, not 3"),
        ({"drop_rate": 1.0}, r"drop_rate 1.0: give .* \[0, 1\)"),
        ({"drop_rate": -0.1}, r"drop_rate -0.1: give .* \[0, 1\)"),
        ({"width": 0.0}, "width 0.0: give a factor above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_on_meta(**options)


def test_groups_are_convolutions_or_stages() -> None:
    net = build_on_meta()
    fine = group_parameters(net, net.group_matcher())
    assert len(fine) == 9
    assert fine[8] == ["classifier.weight", "classifier.bias"]
    coarse = [
        {name.split(".")[0] for name in group} for group in group_parameters(net, net.group_matcher(True)).values()
    ]
    assert coarse == [{"stage1"}, {"stage2"}, {"stage3"}, {"classifier"}]
