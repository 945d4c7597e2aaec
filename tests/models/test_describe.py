"""What is described is what runs: exact sums, torch's own count, shapes, stages."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_cnn.core.errors import UsageError
from lit_cnn.models import BUILDERS, create_model, least_image_size, lenet
from lit_cnn.models.describe import TOTALS, Layer, describe, measure

# Half of what torch counts; the published figures are 1.82 G, 4.1 G, 5.7 G and 1.3 G (with attention).
THEIRS = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "inception_v3": (23_834_568, 5_713_216_096),
    "vit_tiny_patch16_224": (5_717_416, 1_253_683_200),
}


def counted_by_torch(net: nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(images)
    return counter.get_total_flops() // 2


def measured(net: nn.Module, *shape: int) -> dict[str, Layer]:
    return {layer.name: layer for layer in measure(net.eval(), torch.zeros(shape))}


def sums(parts: Any) -> tuple[int, int]:
    return sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)


def test_lenet5_by_hand() -> None:
    description = describe("lenet5")
    # Multiply-adds: outputs x inputs that each of them sees. The same layers as in test_lenet.
    assert description.layers == (
        Layer("conv1", "Conv2d", (6, 28, 28), 156, 6 * 28 * 28 * 25),
        Layer("conv2", "Conv2d", (16, 10, 10), 2_416, 16 * 10 * 10 * 6 * 25),
        Layer("fc1", "Linear", (120,), 48_120, 120 * 400),
        Layer("fc2", "Linear", (84,), 10_164, 84 * 120),
        Layer("classifier", "Linear", (10,), 850, 10 * 84),
    )
    assert description.totals == {
        "parameters": 61_706,
        "multiply_adds": 416_520,
        "activation_bytes": 4 * (6 * 28 * 28 + 16 * 10 * 10 + 120 + 84 + 10),
    }
    given = (description.arch, description.image_size, description.in_channels, description.num_classes)
    assert given == ("lit/lenet5", 28, 1, 10)
    assert (description.native_image_size, description.least_image_size) == (28, 12)


@pytest.mark.parametrize("arch", THEIRS)
def test_totals_are_the_sums_over_layers_and_over_stages_and_torchs_count(arch: str) -> None:
    description = describe(arch, stages=True)
    totals = (description.totals["parameters"], description.totals["multiply_adds"])
    assert totals == THEIRS[arch]
    assert totals == sums(description.layers)
    assert description.stages is not None
    assert totals == sums(description.stages)
    with torch.device("meta"):
        net = create_model(arch, num_classes=1000, in_channels=3, image_size=description.image_size)
        images = torch.empty(1, 3, description.image_size, description.image_size)
    assert totals == (sum(p.numel() for p in net.parameters()), counted_by_torch(net, images))


@pytest.mark.parametrize("arch", ["lenet5", "resnet18", "test_vit"])
def test_the_meta_device_counts_as_the_cpu_does(arch: str) -> None:
    description = describe(arch)
    channels, size = description.in_channels, description.image_size
    net = create_model(arch, num_classes=description.num_classes, in_channels=channels, image_size=size)
    assert description.totals["multiply_adds"] == counted_by_torch(net, torch.zeros(1, channels, size, size))


@pytest.mark.parametrize("arch", BUILDERS)
def test_every_network_of_ours_is_described_at_its_native_size(arch: str) -> None:
    description = describe(arch, stages=True)
    assert description.paper == {} or {"source"} < description.paper.keys() <= {*TOTALS, "source"}
    assert description.least_image_size is None or 1 <= description.least_image_size <= description.native_image_size
    called = [layer for layer in description.layers if layer.output_shape is not None]
    assert called[-1].output_shape == (description.num_classes,)
    assert description.stages is not None
    totals = (description.totals["parameters"], description.totals["multiply_adds"])
    assert totals == sums(description.layers) == sums(description.stages)


def test_attention_is_counted_beside_the_layers_inside_it() -> None:
    layers = {layer.name: layer for layer in describe("vit_tiny_patch16_224").layers}
    # 3 heads of 64 numbers: 197 queries against 197 keys, then 197 weights on 197 values.
    assert layers["blocks.0.attn"].multiply_adds == 2 * 3 * 197 * 197 * 64
    assert layers["blocks.0.attn"].parameters == 0
    assert layers["blocks.0.attn.qkv"].multiply_adds == 197 * 192 * 3 * 192
    # The class token and the positions are the network's own.
    assert layers["(root)"].parameters == 192 + 197 * 192


def test_the_bottleneck_of_inception() -> None:
    naive = measured(nn.Sequential(nn.Conv2d(192, 32, 5, padding=2)), 1, 192, 28, 28)
    narrow = measured(nn.Sequential(nn.Conv2d(192, 16, 1), nn.Conv2d(16, 32, 5, padding=2)), 1, 192, 28, 28)
    assert naive["0"].multiply_adds == 120_422_400
    assert [layer.multiply_adds for layer in narrow.values()] == [2_408_448, 10_035_200]
    assert naive["0"].output_shape == narrow["1"].output_shape == (32, 28, 28)


class Twice(nn.Module):
    """One layer that is called twice, a second that shares its weight, and a third that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.shared.weight
        self.branch = nn.Linear(8, 3)
        self.last = nn.Linear(8, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        once = self.shared(features)
        product = once @ torch.zeros(8, 8)
        return self.last(self.tied(self.shared(product)))


def test_what_is_shared_counts_its_parameters_once_and_its_work_each_time() -> None:
    layers = measured(Twice(), 1, 8)
    assert list(layers) == ["(root)", "shared", "tied", "branch", "last"]
    assert {name: layer.parameters for name, layer in layers.items()} == {
        "(root)": 0,
        "shared": 72,
        "tied": 0,
        "branch": 27,
        "last": 18,
    }
    # The product that stands in the network's own forward is the network's.
    assert [layer.multiply_adds for layer in layers.values()] == [64, 128, 64, 0, 16]
    assert [layer.output_shape for layer in layers.values()] == [(2,), (8,), (8,), None, (2,)]


def test_layers_stand_in_the_order_of_their_calls() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(4, 2)
            self.first = nn.Linear(3, 4)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(features))

    assert list(measured(Swapped(), 1, 3)) == ["first", "second"]


def test_an_output_that_is_the_input_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Sequential):
        def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 224) -> None:
            in_place = [nn.ReLU(inplace=True), nn.Dropout(), nn.Identity(), nn.Sequential()]
            super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, 5), *in_place, nn.ReLU())

    monkeypatch.setitem(BUILDERS, "net", "lenet:Net")
    monkeypatch.setattr(lenet, "Net", Net, raising=False)
    description = describe("net", image_size=2, in_channels=3)
    assert description.totals["activation_bytes"] == 4 * (12 + 5 + 5)
    assert [layer.type for layer in description.layers] == ["Flatten", "Linear", "ReLU", "Dropout", "ReLU"]
    assert (description.native_image_size, description.num_classes) == (224, 1000)
    with pytest.raises(UsageError, match="stages: lit/net is not made to be split into stages"):
        describe("net", image_size=2, stages=True)


def test_measuring_leaves_the_network_as_it_was() -> None:
    net = create_model("lenet5", num_classes=10, in_channels=1, image_size=28)
    net.conv1.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    measure(net, torch.zeros(1, 1, 28, 28))
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(RuntimeError):
        measure(net, torch.zeros(1, 3, 28, 28))
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_describing_draws_nothing() -> None:
    state = torch.get_rng_state()
    describe("lenet5")
    describe("resnet18")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stages_of_resnet18() -> None:
    stages = describe("resnet18", stages=True).stages
    assert stages is not None
    assert [stage.number for stage in stages] == list(range(6))
    shapes = [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (1000,)]
    assert [stage.output_shape for stage in stages] == shapes
    assert stages[0].layers == ("conv1", "bn1")
    assert stages[0].parameters == 64 * 3 * 49 + 2 * 64
    assert all(name.startswith("layer3.") for name in stages[3].layers)
    assert stages[5].layers == ("fc",)
    assert stages[5].multiply_adds == 512_000


def test_a_stage_of_branches_gives_all_their_channels() -> None:
    stages = describe("inception_v3", stages=True).stages
    assert stages is not None
    assert (2048, 8, 8) in [stage.output_shape for stage in stages]  # Mixed_7c joins 320 + 768 + 768 + 192.


@pytest.mark.parametrize(
    ("arch", "native", "classes"),
    [("lenet5", 28, 10), ("inception_v3", 299, 1000), ("test_vit", 160, 10), ("resnet18.a1_in1k", 224, 1000)],
)
def test_native_sizes_and_class_counts(arch: str, native: int, classes: int) -> None:
    description = describe(arch)
    assert description.native_image_size == description.image_size == native
    assert description.num_classes == classes


def test_what_is_given_is_used() -> None:
    description = describe("resnet18", image_size=32, in_channels=1, num_classes=7, drop_rate=0.5)
    assert description.layers[0].output_shape == (64, 16, 16)
    assert description.layers[0].parameters == 64 * 49
    assert description.layers[-1].output_shape == (7,)
    assert (description.image_size, description.in_channels, description.num_classes) == (32, 1, 7)
    assert description.native_image_size == 224


@pytest.mark.parametrize("arch", ["lenet5", "timm/vgg11", "resnet18", "inception_v3"])
def test_the_least_size_is_that_of_create_model(arch: str) -> None:
    assert describe(arch).least_image_size == least_image_size(arch, in_channels=1)


@pytest.mark.parametrize("arch", ["test_vit", "vit_tiny_patch16_224"])  # multiples of 16, and 224 only
def test_a_network_for_certain_sizes_has_no_least_size(arch: str) -> None:
    assert describe(arch).least_image_size is None


def test_json_has_the_documented_keys() -> None:
    found = json.loads(describe("lenet5").to_json())
    assert {"arch", "layers", "totals", "paper"} <= found.keys()
    assert "stages" not in found
    assert found["totals"].keys() == set(TOTALS)
    assert all(
        layer.keys() == {"name", "type", "output_shape", "parameters", "multiply_adds"} for layer in found["layers"]
    )
    assert found["layers"][0]["output_shape"] == [6, 28, 28]
    staged = json.loads(describe("lenet5", stages=True).to_json())
    assert staged["stages"][0] == {
        "number": 0,
        "layers": ["conv1"],
        "output_shape": [6, 28, 28],
        "parameters": 156,
        "multiply_adds": 117_600,
    }


def test_the_papers_figures_come_from_the_architectures_module(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"parameters": 60_000, "source": "LeCun et al. 1998, section II-B"}
    monkeypatch.setattr(lenet, "PAPER", {"lenet5": figures}, raising=False)
    assert describe("lenet5").paper == figures
    monkeypatch.delattr(lenet, "PAPER")
    assert describe("lenet5").paper == {}
    assert describe("resnet18").paper == {}


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet81", {}, "resnet81: no such architecture; nearest: resnet18"),
        ("lenet5", {"image_size": 11}, "11: too small for lit/lenet5; give 12 or more"),
        ("lenet5", {"image_size": 0}, "0: too small for lit/lenet5; give 12 or more"),
        ("lenet5", {"in_channels": 0}, "in_channels=0: give 1 or more"),
        ("lenet5", {"num_classes": -1}, "num_classes=-1: give 0 or more"),
        ("lenet5", {"nonsense": 3}, "nonsense: lit/lenet5 has no such option"),
    ],
)
def test_mistakes_are_told(arch: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        describe(arch, **options)
