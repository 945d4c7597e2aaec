"""Plain and residual networks: the paper's numbers, its three shortcuts, and what the shortcut is for."""

import inspect
import itertools
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_cnn.models import BUILDERS, resnet
from lit_cnn.models.resnet import BasicBlock, Bottleneck, ResNet, ZeroPad

CIFAR_PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
IMAGENET_DEPTHS = (18, 34, 50, 101, 152)
NAMES = [name for name, place in BUILDERS.items() if place.startswith("resnet:")]
BLOCKS = {"basic": lambda **options: BasicBlock(8, 8, **options), "bottleneck": lambda **o: Bottleneck(8, 2, **o)}
every_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)


def build_on_meta(name: str, **options: Any) -> ResNet:
    with torch.device("meta"):
        return getattr(resnet, name)(**{"num_classes": 10, **options})


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def shape_of(net: ResNet, size: int) -> torch.Size:
    return net.forward_features(torch.empty(2, 3, size, size, device="meta")).shape


@pytest.mark.parametrize("kind", ["plain", "resnet"])
@pytest.mark.parametrize(("depth", "parameters"), CIFAR_PARAMETERS.items())
def test_cifar_form_has_the_papers_parameters_and_maps(kind: str, depth: int, parameters: int) -> None:
    net = build_on_meta(f"{kind}{depth}")
    assert count_parameters(net) == parameters
    assert shape_of(net, 32) == (2, 64, 8, 8)


def test_projections_add_what_lecture_notes_count_for_20_layers() -> None:
    # 16 * 32 + 2 * 32 and 32 * 64 + 2 * 64 more.
    assert count_parameters(build_on_meta("resnet20", shortcut="projection")) == 269_722 + 576 + 2_176 == 272_474


@pytest.mark.parametrize("depth", IMAGENET_DEPTHS)
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_imagenet_form_has_as_many_parameters_as_timms(depth: int, num_classes: int) -> None:
    net = build_on_meta(f"residual{depth}", num_classes=num_classes)
    with torch.device("meta"):
        theirs = timm.create_model(f"resnet{depth}", num_classes=num_classes)
    assert count_parameters(net) == count_parameters(theirs)
    assert shape_of(net, 224) == (2, 512 if depth < 50 else 2048, 7, 7)


@pytest.mark.parametrize("name", ["resnet20", "residual18", "residual50"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_shortcut_a_is_free(name: str, batch_norm: bool) -> None:
    with_it = build_on_meta(name, shortcut="zero_pad", batch_norm=batch_norm)
    plain = build_on_meta(name, residual=False, batch_norm=batch_norm)
    assert list(with_it.state_dict()) == list(plain.state_dict())
    assert count_parameters(with_it) == count_parameters(plain)


@pytest.mark.parametrize("name", ["resnet56", "residual34", "residual50"])
def test_shortcuts_have_projections_where_the_paper_says(name: str) -> None:
    blocks = sum(isinstance(module, BasicBlock | Bottleneck) for module in build_on_meta(name).modules())
    changes = {"resnet56": 2, "residual34": 3, "residual50": 4}[name]  # the last one widens 64 to 256 at 56 px too
    for shortcut, projections in (("zero_pad", 0), ("projection", changes), ("projection_all", blocks)):
        names = [n for n, _ in build_on_meta(name, shortcut=shortcut).named_parameters() if "downsample.0.w" in n]
        assert len(names) == projections


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_the_depth_and_whether_there_are_shortcuts(name: str) -> None:
    net = build_on_meta(name)
    kind = name.rstrip("0123456789")
    main_path = [
        module_name
        for module_name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in module_name
    ]
    assert len(main_path) == int(name.removeprefix(kind))
    shortcuts = [module for module_name, module in net.named_modules() if module_name.endswith(".downsample")]
    num_blocks = sum(isinstance(module, BasicBlock | Bottleneck) for module in net.modules())
    assert len(shortcuts) == (0 if kind == "plain" else num_blocks)
    projects = any(isinstance(shortcut, nn.Sequential) for shortcut in shortcuts)
    assert projects == (kind == "residual")  # B by default in the ImageNet form, A in the CIFAR form


def test_a_name_shows_its_options_and_defaults_but_not_what_it_stands_for() -> None:
    shown = {name: p.default for name, p in inspect.signature(resnet.plain20).parameters.items()}
    assert shown.pop("num_classes") is inspect.Parameter.empty
    assert shown == {
        "in_channels": 3,
        "image_size": 32,
        "residual": False,
        "shortcut": "zero_pad",
        "stride_in": "1x1",
        "batch_norm": True,
        "width": 1.0,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if "multiply_adds" in resnet.PAPER[name]])
def test_multiply_adds_are_the_papers(name: str) -> None:
    net = build_on_meta(name, num_classes=1000).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 224, 224, device="meta"))
    # The paper rounds down: 3.66 is its 3.6.
    assert counter.get_total_flops() / 2 == pytest.approx(resnet.PAPER[name]["multiply_adds"], abs=0.08e9)


@pytest.mark.parametrize("name", [name for name in NAMES if "parameters" in resnet.PAPER[name]])
def test_parameters_are_the_papers(name: str) -> None:
    assert count_parameters(build_on_meta(name)) == pytest.approx(resnet.PAPER[name]["parameters"], rel=0.02)


def test_the_paper_has_a_figure_for_every_name() -> None:
    assert resnet.PAPER.keys() == set(NAMES)


@pytest.mark.parametrize("depth", [18, 50])
def test_timms_weights_give_timms_logits(depth: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(f"resnet{depth}", num_classes=10, zero_init_last=False).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in module.state_dict().values():
                if values.is_floating_point():
                    nn.init.uniform_(values, 0.5, 1.5)
    ours = getattr(resnet, f"residual{depth}")(num_classes=10, stride_in="3x3").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = theirs(images)
        torch.testing.assert_close(ours(images), logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    assert float(logits.std()) > 0.01  # not the bias of the last layer alone


@pytest.mark.parametrize(("stride_in", "side"), [("1x1", 4), ("3x3", 8)])
def test_stride_in_says_which_convolution_halves_the_maps(stride_in: str, side: int) -> None:
    block = build_on_meta("residual50", stride_in=stride_in).layer2.get_submodule("0")
    assert isinstance(block, Bottleneck)
    maps = torch.empty(1, 256, 8, 8, device="meta")
    assert block.conv1(maps).shape[-1] == side
    assert block(maps).shape == (1, 512, 4, 4)


def test_shortcut_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    maps = torch.randn(2, 3, 5, 6)
    padded = ZeroPad(num_more=2, stride=2)(maps)
    assert padded.shape == (2, 5, 3, 3)
    assert torch.equal(padded[:, :3], maps[:, :, ::2, ::2])
    assert padded[:, 3:].count_nonzero() == 0
    assert list(ZeroPad(num_more=2, stride=2).parameters()) == []


@every_block
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_block_with_zero_weights_returns_its_input_where_that_is_not_negative(
    block: Any, is_training: bool, batch_norm: bool
) -> None:
    residual = block(batch_norm=batch_norm, shortcut="zero_pad").train(is_training)
    plain = block(batch_norm=batch_norm, shortcut=None).train(is_training)
    for parameter in [*residual.parameters(), *plain.parameters()]:
        nn.init.zeros_(parameter)
    maps = torch.randn(4, 8, 5, 5)
    assert torch.equal(residual(maps.relu()), maps.relu())
    # The ReLU after the addition cuts off the rest: for such maps the block is not the identity.
    assert torch.equal(residual(maps), maps.relu())
    assert not torch.equal(residual(maps), maps)
    assert plain(maps.relu()).count_nonzero() == 0


def decay(block: nn.Module, parameters: list[nn.Parameter], num_steps: int = 20) -> list[float]:
    """The norms of block(x) - x after 0, 1, 2, ... steps of weight decay alone, for a fixed x that is not negative."""
    maps = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(1)).relu()
    optimizer = torch.optim.SGD(parameters, lr=1.0, weight_decay=0.1)
    norms = []
    for _ in range(num_steps + 1):
        with torch.no_grad():
            norms.append(float((block(maps) - maps).norm()))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # no data
        optimizer.step()
    return norms


@every_block
@pytest.mark.parametrize("batch_norm", [True, False])
def test_weight_decay_pulls_a_superfluous_block_towards_the_identity(block: Any, batch_norm: bool) -> None:
    torch.manual_seed(0)
    residual = block(batch_norm=batch_norm, shortcut="zero_pad").train()
    norms = decay(residual, list(residual.parameters()))
    assert all(after < before for before, after in itertools.pairwise(norms))
    assert norms[-1] < 0.25 * norms[0]
    plain = block(batch_norm=batch_norm, shortcut=None).train()
    norms = decay(plain, list(plain.parameters()))
    assert norms[-1] > norms[0] / 2  # towards zero maps, which are as far from the input as its own norm


@every_block
def test_weight_decay_of_normalised_convolutions_alone_does_nothing(block: Any) -> None:
    torch.manual_seed(0)
    residual = block(batch_norm=True, shortcut="zero_pad").train()
    convolutions = [parameter for name, parameter in residual.named_parameters() if name.startswith("conv")]
    norms = decay(residual, convolutions)
    assert norms == pytest.approx([norms[0]] * len(norms), rel=0.01)


def test_initial_weights_are_those_that_the_paper_cites() -> None:
    torch.manual_seed(0)
    for net in (resnet.resnet20(num_classes=10), resnet.resnet20(num_classes=10, batch_norm=False)):
        conv = net.layer3.get_submodule("0.conv1")  # from 32 to 64 channels: 64 * 9 is its fan-out
        assert isinstance(conv, nn.Conv2d)
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
        zeros = {n for n, p in net.named_parameters() if p.count_nonzero() == 0}
        assert zeros == {n for n, _ in net.named_parameters() if n.endswith("bias") and not n.startswith("fc")}


def test_without_batch_norm_convolutions_have_biases() -> None:
    net = build_on_meta("residual50", batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert all(module.bias is not None for module in net.modules() if isinstance(module, nn.Conv2d))
    with_norm = build_on_meta("residual50")
    assert all(module.bias is None for module in with_norm.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(("width", "channels"), [(0.25, [4, 8, 16]), (2, [32, 64, 128]), (0.001, [1, 1, 1])])
@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
def test_width_multiplies_the_channels(width: float, channels: list[int], shortcut: str) -> None:
    net = resnet.resnet20(num_classes=10, width=width, shortcut=shortcut).eval()
    stages = [net.layer1, net.layer2, net.layer3]
    assert [stage.get_submodule("0").out_channels for stage in stages] == channels
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert build_on_meta("residual50", width=width).num_features == 4 * max(1, round(512 * width))


def test_groups_are_the_blocks_or_coarse_the_stages() -> None:
    net = build_on_meta("residual18")
    fine = group_parameters(net, net.group_matcher())
    coarse = group_parameters(net, net.group_matcher(coarse=True))
    assert [len(fine), len(coarse)] == [1 + 8 + 1, 1 + 4 + 1]
    assert sorted(fine[0]) == sorted(coarse[0]) == ["bn1.bias", "bn1.weight", "conv1.weight"]


@pytest.mark.parametrize(
    ("form", "depth", "options", "message"),
    [
        ("cifar", 18, {}, r"depth 18: the cifar form has 6n \+ 2 layers, so give 8, 14, 20"),
        ("cifar", 2, {}, "depth 2: "),
        ("imagenet", 20, {}, "depth 20: give one of 18, 34, 50, 101, 152"),
        ("svhn", 20, {}, "form 'svhn': give one of 'cifar', 'imagenet'"),
        ("cifar", 20, {"shortcut": "A"}, "shortcut 'A': give one of 'zero_pad', 'projection', 'projection_all'"),
        ("imagenet", 50, {"stride_in": "1"}, "stride_in '1': give one of '1x1', '3x3'"),
        ("cifar", 20, {"width": 0}, "width 0: give a number above 0"),
        ("cifar", 20, {"image_size": 2}, "image_size 2: the cifar form takes 3 px or more"),
        ("imagenet", 18, {"image_size": 16}, "image_size 16: the imagenet form takes 17 px or more"),
    ],
)
def test_what_there_is_not_is_refused(form: Any, depth: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(form, depth, num_classes=10, **options)
