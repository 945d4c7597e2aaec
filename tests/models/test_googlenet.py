"""GoogLeNet: the paper's numbers, exactly; side branches that never touch the main path."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_cnn.models.googlenet import GoogLeNet, Inception


def build_on_meta(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, **options: Any) -> Any:
    with torch.device("meta"):
        return GoogLeNet(num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options)


def build_small(**options: Any) -> Any:
    """A net for images of one channel and 32 px, with few channels."""
    return GoogLeNet(num_classes=10, in_channels=1, image_size=32, stem="small", width=0.125, **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiplications(module: nn.Module, maps: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(maps)
    return counter.get_total_flops() // 2  # it counts the additions too


def maps_of(module: nn.Module) -> list[tuple[int, ...]]:
    """Gets the channels, height and width of what the Inception modules return, as the network runs."""
    seen: list[tuple[int, ...]] = []
    for block in module.modules():
        if isinstance(block, Inception):
            block.register_forward_hook(lambda block, args, output: seen.append(tuple(output.shape[1:])))
    return seen


def test_has_6998552_parameters_and_13378280_with_both_side_branches() -> None:
    assert count(build_on_meta(aux_weight=0)) == 6_998_552
    net = build_on_meta()
    assert count(net) == 13_378_280
    # (512 + 1) * 128 or (528 + 1) * 128, (128 * 16 + 1) * 1024, (1024 + 1) * 1000.
    assert [count(branch) for branch in net.side_branches] == [3_188_840, 3_190_888]


def test_has_the_parameters_of_the_papers_widths() -> None:
    net = build_on_meta()
    assert [count(block) for block in net.inceptions.values()] == [
        *[163_696, 388_736],
        *[376_176, 449_160, 510_104, 605_376, 868_352],
        *[1_043_456, 1_444_080],
    ]
    assert count(net.stem) == (3 * 49 + 1) * 64 + (64 + 1) * 64 + (64 * 9 + 1) * 192
    assert count(net.classifier) == 1_025_000


def test_maps_have_the_papers_sizes() -> None:
    net, images = build_on_meta(), torch.empty(2, 3, 224, 224, device="meta")
    shapes, stem = maps_of(net), []
    for layer in net.stem:
        layer.register_forward_hook(lambda layer, args, output: stem.append(tuple(output.shape[1:])))
    assert net(images).shape == (2, 1000)
    assert shapes == [
        *[(256, 28, 28), (480, 28, 28)],
        *[(512, 14, 14), (512, 14, 14), (512, 14, 14), (528, 14, 14), (832, 14, 14)],
        *[(832, 7, 7), (1024, 7, 7)],
    ]
    assert list(dict.fromkeys(stem)) == [(64, 112, 112), (64, 56, 56), (192, 56, 56), (192, 28, 28)]
    assert net.forward_features(images).shape == (2, 1024, 7, 7)


def test_the_small_stem_keeps_the_papers_maps_for_small_images() -> None:
    net = build_on_meta(num_classes=10, image_size=32, stem="small")
    shapes = maps_of(net)
    assert net.stem(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 192, 32, 32)
    assert net(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)
    assert [shape[1] for shape in shapes] == [32] * 2 + [16] * 5 + [8] * 2
    assert [branch.fc.in_features for branch in net.side_branches] == [128 * 4 * 4] * 2


@pytest.mark.parametrize(
    ("stem", "image_size", "pooled"),
    [("paper", 31, 1), ("paper", 64, 1), ("paper", 95, 1), ("paper", 128, 2), ("paper", 240, 4), ("small", 4, 1)],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_side_branches_fit_other_sizes(stem: Any, image_size: int, pooled: int, in_channels: int) -> None:
    net = build_on_meta(10, in_channels, image_size, stem=stem)
    assert [branch.fc.in_features for branch in net.side_branches] == [128 * pooled**2] * 2
    logits, aux_logits = net.forward_with_aux(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    assert [each.shape for each in (logits, *aux_logits)] == [(1, 10)] * 3


def test_the_bottleneck_saves_the_papers_multiplications() -> None:
    # 28x28 maps, 192 channels to 32 by 5x5: 120 M at once, 2.4 M + 10.0 M by way of 16 channels. That is module 3a.
    maps = torch.empty(1, 192, 28, 28, device="meta")
    naive, module = (build_on_meta(bottleneck=bottleneck).inceptions["3a"] for bottleneck in (False, True))
    assert count_multiplications(naive.branch5, maps) == 28 * 28 * 32 * 5 * 5 * 192 == 120_422_400
    reduce, conv = module.branch5
    assert count_multiplications(reduce, maps) == 28 * 28 * 16 * 192 == 2_408_448
    assert count_multiplications(conv, maps[:, :16]) == 28 * 28 * 32 * 5 * 5 * 16 == 10_035_200
    assert count_multiplications(module.branch5, maps) == 12_443_648


def test_the_naive_module_hands_all_channels_on() -> None:
    with torch.device("meta"):
        naive = Inception(192, 64, 96, 128, 16, 32, 32, bottleneck=False)
    assert naive.out_channels == 64 + 128 + 32 + 192
    assert naive(torch.empty(2, 192, 28, 28, device="meta")).shape == (2, 416, 28, 28)
    assert count(naive) == (192 + 1) * 64 + (192 * 9 + 1) * 128 + (192 * 25 + 1) * 32
    assert build_on_meta(bottleneck=False).num_features == 4944


@pytest.mark.parametrize("bottleneck", [True, False])
def test_branches_are_concatenated_in_the_papers_order(bottleneck: bool) -> None:
    module, maps = Inception(6, 2, 3, 4, 2, 5, 3, bottleneck=bottleneck), torch.randn(1, 6, 9, 9)
    first, second, third, last = module(maps).split([2, 4, 5, 3 if bottleneck else 6], 1)
    torch.testing.assert_close(first, module.branch1(maps))
    torch.testing.assert_close(second, module.branch3(maps))
    torch.testing.assert_close(third, module.branch5(maps))
    largest = maps.unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))  # without the border
    torch.testing.assert_close(last[:, :, 1:-1, 1:-1], module.branch_pool(largest))


def test_the_third_branch_sees_5_by_5_pixels() -> None:
    # A copy with 3x3, as torchvision's, would not see the corner two pixels away.
    module: Any = Inception(1, 1, 1, 1, 1, 1, 1)
    maps = torch.ones(1, 1, 9, 9, requires_grad=True)
    for conv in (module.branch5[0][0], module.branch5[1][0]):
        nn.init.ones_(conv.weight)
    module.branch5(maps)[0, 0, 4, 4].backward()
    assert maps.grad is not None
    assert maps.grad[0, 0].nonzero().tolist() == [[row, column] for row in range(2, 7) for column in range(2, 7)]


@pytest.mark.parametrize("stem", ["paper", "small"])
def test_normalisation_is_the_papers_or_batch_norm_or_none(stem: Any) -> None:
    def kinds(**options: Any) -> tuple[int, int]:
        modules = list(build_on_meta(stem=stem, **options).modules())
        norms = sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in modules)
        return sum(isinstance(module, nn.LocalResponseNorm) for module in modules), norms

    responses, convs = (2, 3) if stem == "paper" else (1, 1)
    assert kinds() == (responses, 0)
    assert kinds(lrn=False) == (0, 0)
    # Six convolutions in each of nine modules; one and a hidden layer in each side branch.
    assert kinds(batch_norm=True) == (0, convs + 9 * 6 + 2 * 2)


def test_local_response_normalisation_divides_by_the_squares_of_five_channels() -> None:
    normalize = build_small().stem[1]
    maps = torch.full((1, 5, 1, 1), 100.0)
    # The middle channel sees all five: (1 + 1e-4 / 5 * 5 * 100^2)^0.75 = 2^0.75.
    assert normalize(maps)[0, 2, 0, 0].item() == pytest.approx(100 / 2**0.75)


def test_initial_weights_tell_images_apart() -> None:
    torch.manual_seed(0)
    features = build_small().forward_features(torch.randn(8, 1, 32, 32)).mean((2, 3))
    # Below 1e-4 with torch's own initial weights.
    assert features.std(0).mean() > 0.01 * features.mean()


def test_batch_norm_replaces_biases() -> None:
    net = build_on_meta(batch_norm=True)
    assert {name for name, layer in net.named_modules() if getattr(layer, "bias", None) is not None} == {
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) or name.endswith("classifier")
    }


@pytest.mark.parametrize("batch_norm", [False, True])
def test_side_branches_leave_the_main_path_as_it_is_bit_for_bit(batch_norm: bool) -> None:
    images = torch.randn(4, 1, 32, 32)
    outputs = []
    for aux_weight in (0.0, 0.3):
        torch.manual_seed(0)
        net = build_small(aux_weight=aux_weight, batch_norm=batch_norm).train()
        weights = [each for name, each in net.named_parameters() if not name.startswith("side_branches.")]
        torch.manual_seed(1)
        logits, aux_logits = net.forward_with_aux(images)
        assert len(aux_logits) == len(net.aux_weights) == (2 if aux_weight else 0)
        gradients = torch.autograd.grad(logits.sum(), weights)
        statistics = [each for name, each in net.named_buffers() if not name.startswith("side_branches.")]
        assert bool(statistics) == batch_norm
        outputs.append([logits, *weights, *gradients, *statistics])
    assert all(torch.equal(without, with_both) for without, with_both in zip(*outputs, strict=True))


def test_forward_never_runs_the_side_branches() -> None:
    net = build_small().train()
    for branch in net.side_branches:
        branch.register_forward_hook(lambda *_: pytest.fail("a side branch was computed"))
    torch.manual_seed(0)
    logits = net(torch.ones(2, 1, 32, 32))
    assert isinstance(logits, torch.Tensor)
    with pytest.raises(pytest.fail.Exception, match="a side branch was computed"):
        net.forward_with_aux(torch.ones(2, 1, 32, 32))


def test_forward_with_aux_gives_the_logits_of_forward_and_those_of_the_branches() -> None:
    net, images = build_small().eval(), torch.randn(2, 1, 32, 32)
    logits, aux_logits = net.forward_with_aux(images)
    torch.testing.assert_close(logits, net(images), rtol=0, atol=0)
    maps = net.stem(images)
    for name in ("3a", "3b"):
        maps = net.inceptions[name](maps)
    maps = net.inceptions["4a"](F.max_pool2d(maps, 3, 2, ceil_mode=True))
    torch.testing.assert_close(aux_logits[0], net.side_branches[0](maps))
    for name in ("4b", "4c", "4d"):
        maps = net.inceptions[name](maps)
    torch.testing.assert_close(aux_logits[1], net.side_branches[1](maps))


def test_a_side_branch_is_the_papers() -> None:
    branch: Any = GoogLeNet(num_classes=10, in_channels=1, width=0.125).side_branches[0].eval()
    maps = torch.randn(2, 64, 14, 14)
    means = torch.stack([maps[:, :, y : y + 5, x : x + 5].mean((2, 3)) for y in (0, 3, 6, 9) for x in (0, 3, 6, 9)], 2)
    maps_1x1 = (torch.einsum("nip,oi->nop", means, branch.conv[0].weight.flatten(1))).relu()
    assert maps_1x1.shape == (2, 16, 16)
    hidden = (maps_1x1.flatten(1) @ branch.fc.weight.T + branch.fc.bias).relu()
    torch.testing.assert_close(branch(maps), branch.classifier(hidden))


def test_side_branches_train_the_layers_before_them_only() -> None:
    net = build_small()
    net.forward_with_aux(torch.randn(2, 1, 32, 32))[1][0].sum().backward()
    trained = {name for name, block in net.inceptions.items() if block.branch1[0].weight.grad is not None}
    assert trained == {"3a", "3b", "4a"}


def test_aux_weights_belong_to_the_branches() -> None:
    assert build_on_meta().aux_weights == (0.3, 0.3)
    assert build_on_meta(aux_weight=1).aux_weights == (1, 1)
    without = build_on_meta(aux_weight=0)
    assert without.aux_weights == ()
    assert not any(name.startswith("side_branches") for name, _ in without.named_parameters())


def test_dropout_is_the_papers() -> None:
    net = build_on_meta()
    assert net.dropout.p == 0.4
    assert [branch.dropout.p for branch in net.side_branches] == [0.7, 0.7]
    assert build_on_meta(drop_rate=0.1).dropout.p == 0.1
    small = build_small(drop_rate=0.9).train()
    features = torch.ones(1, small.num_features, 2, 2)
    assert (small.forward_head(features, pre_logits=True) == 0).any()


@pytest.mark.parametrize("num_classes", [7, 0])
def test_reset_classifier_resets_the_side_branches_too(num_classes: int) -> None:
    net = build_on_meta().to(torch.bfloat16)
    net.reset_classifier(num_classes)
    images = torch.empty(2, 3, 224, 224, device="meta", dtype=torch.bfloat16)
    logits, aux_logits = net.forward_with_aux(images)
    assert logits.shape == (2, num_classes or 1024)
    assert [each.shape for each in aux_logits] == [(2, num_classes or 1024)] * 2
    assert {each.dtype for each in (logits, *aux_logits)} == {torch.bfloat16}


def test_width_scales_every_layer() -> None:
    net = build_on_meta(width=0.5)
    assert net.num_features == net.head_hidden_size == 512
    assert net.stem[0][0].out_channels == 32
    assert [(branch.conv[0].out_channels, branch.fc.out_features) for branch in net.side_branches] == [(64, 512)] * 2
    assert build_on_meta(width=0.001).num_features == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "31 px or more, not 30"),
        ({"image_size": 3, "stem": "small"}, "4 px or more, not 3"),
        ({"stem": "tiny"}, "stem 'tiny': give one of paper, small"),
        ({"aux_weight": 1.1}, r"aux_weight 1.1: give .* \[0, 1\]"),
        ({"aux_weight": -0.1}, r"aux_weight -0.1: give .* \[0, 1\]"),
        ({"drop_rate": 1.0}, r"drop_rate 1.0: give .* \[0, 1\)"),
        ({"width": 0}, "width 0: give a factor above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_on_meta(**options)


def test_groups_are_modules_or_stages_and_side_branches_are_classifiers() -> None:
    net = build_on_meta()
    for coarse, blocks in ((False, list(net.inceptions)), (True, ["3", "4", "5"])):
        groups = list(group_parameters(net, net.group_matcher(coarse)).values())
        assert len(groups) == len(blocks) + 2
        assert {name.split(".")[0] for name in groups[0]} == {"stem"}
        for block, group in zip(blocks, groups[1:-1], strict=True):
            assert all(name.startswith(f"inceptions.{block}") for name in group)
        assert {name.split(".")[0] for name in groups[-1]} == {"classifier", "side_branches"}
