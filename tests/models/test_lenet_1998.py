"""LeNet-5 of 1998: the paper's numbers, exactly."""

import math
from typing import Any

import pytest
import torch
from timm.models import group_parameters

from lit_cnn.models.lenet_1998 import C3_TABLE, LeNet5_1998, digit_codes, squash

# Table I as printed: a row for each map of S2, a column for each map of C3.
PRINTED_TABLE = [
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
]


def count_trained(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def build_on_meta(in_channels: int = 1, output: str = "rbf", num_classes: int = 10) -> LeNet5_1998:
    with torch.device("meta"):
        return LeNet5_1998(num_classes, in_channels, output=output)  # type: ignore[arg-type]


def test_has_the_papers_layers_and_60000_parameters() -> None:
    net = build_on_meta()
    counts = {name: count_trained(layer) for name, layer in net.named_children()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "classifier": 0}
    assert count_trained(net) == 60_000
    # Fixed, but part of what a checkpoint holds.
    assert {name: buffer.numel() for name, buffer in net.classifier.named_buffers()} == {"codes": 840}
    assert "classifier.codes" in net.state_dict()
    assert sum(values.numel() for values in net.state_dict().values()) == 60_840


@pytest.mark.parametrize("num_classes", [10, 7])
def test_a_linear_output_adds_85_parameters_for_each_class(num_classes: int) -> None:
    assert count_trained(build_on_meta(output="linear", num_classes=num_classes)) == 60_000 + 85 * num_classes


def test_three_channels_widen_c1_only() -> None:
    assert count_trained(build_on_meta(in_channels=3)) == 60_000 + 2 * 6 * 25


@pytest.mark.parametrize("in_channels", [1, 3])
def test_maps_have_the_papers_sizes(in_channels: int) -> None:
    net = build_on_meta(in_channels)
    shapes = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _module, _args, maps, name=name: shapes.update({name: tuple(maps.shape)}))
    net(torch.empty(2, in_channels, 32, 32, device="meta"))
    assert shapes == {
        "c1": (2, 6, 28, 28),
        "s2": (2, 6, 14, 14),
        "c3": (2, 16, 10, 10),
        "s4": (2, 16, 5, 5),
        "c5": (2, 120, 1, 1),
        "f6": (2, 84),
        "classifier": (2, 10),
    }


@pytest.mark.parametrize("image_size", [0, 28, 31, 33, 36, 64])
def test_another_size_is_refused(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"takes images of 32 px only, not {image_size}"):
        LeNet5_1998(num_classes=10, image_size=image_size)


@pytest.mark.parametrize("num_classes", [1, 7, 100])
def test_codes_for_other_than_ten_classes_are_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f'ten digits, not for {num_classes}; use output="linear"'):
        LeNet5_1998(num_classes=num_classes)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match='output \'softmax\': give "rbf" or "linear"'):
        LeNet5_1998(num_classes=10, output="softmax")  # type: ignore[arg-type]


def test_squash_is_a_scaled_tanh() -> None:
    values = squash(torch.tensor([-100.0, -1.0, 0.0, 0.5, 1.0, 100.0]))
    wanted = torch.tensor([-1.7159, -1.0, 0.0, 1.7159 * math.tanh(1 / 3), 1.0, 1.7159])
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4)


def test_every_layer_up_to_f6_is_squashed() -> None:
    torch.manual_seed(0)
    net = LeNet5_1998(num_classes=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(100)
    images = 100 * torch.randn(4, 1, 32, 32)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer: what goes in, what comes out
    for layer in list(net.children())[:-1]:
        layer.register_forward_hook(lambda _module, args, sums: seen.append((args[0], sums)))
    last = net(images)
    assert len(seen) == 6
    for (_, sums), following in zip(seen, [*(given for given, _ in seen[1:]), last], strict=True):
        assert sums.abs().max() > 2
        torch.testing.assert_close(squash(sums).flatten(1), following.flatten(1))


def test_sub_sampling_scales_the_sum_of_four_and_shifts_it() -> None:
    net = LeNet5_1998(num_classes=10)
    maps = torch.randn(2, 6, 4, 6)
    sums = maps[..., ::2, ::2] + maps[..., ::2, 1::2] + maps[..., 1::2, ::2] + maps[..., 1::2, 1::2]
    for channel in range(6):
        wanted = net.s2.coefficient[channel] * sums[:, channel] + net.s2.bias[channel]
        torch.testing.assert_close(net.s2(maps)[:, channel], wanted)


def test_the_table_of_c3_is_the_papers() -> None:
    columns = [tuple(row for row in range(6) if PRINTED_TABLE[row][column] == "X") for column in range(16)]
    assert [tuple(sorted(sources)) for sources in C3_TABLE] == columns


def test_c3_sees_what_the_table_says() -> None:
    c3 = LeNet5_1998(num_classes=10).c3
    for source in range(6):
        maps = torch.zeros(1, 6, 5, 5)
        maps[:, source] = torch.rand(5, 5) + 1
        sums = c3(maps)[0, :, 0, 0] - c3.bias
        assert [sums[out] != 0 for out in range(16)] == [mark == "X" for mark in PRINTED_TABLE[source]]


def test_c3_keeps_the_weights_of_each_map_in_the_order_of_the_table() -> None:
    c3 = LeNet5_1998(num_classes=10).c3
    maps = torch.randn(2, 6, 14, 14)
    first = 0
    for out, sources in enumerate(C3_TABLE):
        kernels = c3.weight[first : first + len(sources)]
        first += len(sources)
        wanted = torch.nn.functional.conv2d(maps[:, sorted(sources)], kernels[torch.tensor(sources).argsort()][None])
        torch.testing.assert_close(c3(maps)[:, out], wanted[:, 0] + c3.bias[out], rtol=1e-4, atol=1e-5)
    assert first == 60


def test_weights_are_drawn_within_2_4_over_the_fan_in() -> None:
    torch.manual_seed(0)
    net = LeNet5_1998(num_classes=7, output="linear")
    classifier: Any = net.get_classifier()
    drawn: dict[int, list[Any]] = {
        25: [net.c1.weight, net.c1.bias],
        4: [torch.cat([layer.coefficient, layer.bias]) for layer in (net.s2, net.s4)],
        75: [net.c3.weight[:18], net.c3.bias[:6]],
        100: [net.c3.weight[18:54], net.c3.bias[6:15]],
        150: [net.c3.weight[54:], net.c3.bias[15:]],
        400: [net.c5.weight, net.c5.bias],
        120: [net.f6.weight, net.f6.bias],
        84: [classifier.weight, classifier.bias],
    }
    assert sum(values.numel() for group in drawn.values() for values in group) == count_trained(net)
    for fan_in, group in drawn.items():
        for values in group:
            assert values.abs().max() <= 2.4 / fan_in
        # The whole range is used: of 28 values or more the largest is hardly ever below two thirds.
        assert torch.cat([values.flatten() for values in group]).abs().max() > 1.6 / fan_in


def test_codes_are_ten_bitmaps_that_differ_well() -> None:
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    differing = (codes[:, None] != codes).sum(2) + 84 * torch.eye(10, dtype=torch.int64)
    assert differing.min() >= 8
    one = codes[1].view(12, 7)
    assert one[11].tolist() == [-1, 1, 1, 1, 1, 1, -1], "the last row of a 1 is its foot"
    assert one[:, 3].tolist() == [1] * 12, "the middle column is its stem"


def test_logits_are_minus_the_squared_distances_to_the_codes() -> None:
    net = LeNet5_1998(num_classes=10)
    features = torch.randn(3, 84)
    wanted = [
        [-sum((x - w) ** 2 for x, w in zip(row, code, strict=True)) for code in digit_codes()] for row in features
    ]
    torch.testing.assert_close(net.get_classifier()(features), torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    at_the_codes = net.get_classifier()(digit_codes())
    assert at_the_codes.argmax(1).tolist() == list(range(10))
    assert at_the_codes.diagonal().tolist() == [0.0] * 10


def test_codes_stay_fixed_in_training() -> None:
    torch.manual_seed(0)
    net = LeNet5_1998(num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, targets = torch.randn(20, 1, 32, 32), torch.arange(20) % 10
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(net.state_dict()["classifier.codes"], digit_codes())


def test_reset_classifier_goes_to_a_linear_layer_and_back_to_the_codes() -> None:
    net = LeNet5_1998(num_classes=10).to(torch.bfloat16)
    net.reset_classifier(7)
    assert isinstance(net.get_classifier(), torch.nn.Linear)
    assert net(torch.randn(1, 1, 32, 32, dtype=torch.bfloat16)).shape == (1, 7)
    net.reset_classifier(10)
    codes = net.state_dict()["classifier.codes"]
    assert codes.dtype == torch.bfloat16
    assert torch.equal(codes.float(), digit_codes())
    linear = LeNet5_1998(num_classes=3, output="linear")
    linear.reset_classifier(10)
    assert isinstance(linear.get_classifier(), torch.nn.Linear)


@pytest.mark.parametrize("output", ["rbf", "linear"])
def test_groups_join_sub_sampling_to_its_convolution(output: str) -> None:
    net = build_on_meta(output=output)
    named_groups = group_parameters(net, net.group_matcher()).values()
    groups = [sorted({name.split(".")[0] for name in group}) for group in named_groups]
    trained_classifier = [["classifier"]] if output == "linear" else []
    assert groups == [["c1", "s2"], ["c3", "s4"], ["c5"], ["f6"], *trained_classifier]
