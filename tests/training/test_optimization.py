import math

import pytest
import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.training import optimization
from lit_cnn.training.optimization import Schedule, build_optimizer, learning_rate_factor


def curve(total_steps: int, schedule: Schedule, warmup_fraction: float) -> list[float]:
    return [learning_rate_factor(step, total_steps, schedule, warmup_fraction) for step in range(total_steps)]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.05),
        (9, 0.5),
        (18, 0.95),
        (19, 1.0),
        (20, 1.0),
        (40, 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 0.5),
        (80, 0.5 * (1 + math.cos(3 * math.pi / 4))),
        (100, 0.0),
        (150, 0.0),
    ],
)
def test_one_cycle_at_known_points(step: int, expected: float) -> None:
    assert learning_rate_factor(step, 100, "one_cycle", 0.2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (99, 1.0), (500, 1.0)])
def test_constant_at_known_points(step: int, expected: float) -> None:
    assert learning_rate_factor(step, 100, "constant", 0.1) == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.23, 0.9])
def test_one_cycle_rises_then_falls(total_steps: int, warmup_fraction: float) -> None:
    factors = curve(total_steps, "one_cycle", warmup_fraction)
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == pytest.approx(1, abs=math.pi**2 / max(2, (1 - warmup_fraction) * total_steps) ** 2)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert curve(10, "constant", 0) == [1.0] * 10
    falling = curve(10, "one_cycle", 0)
    assert falling[0] == 1 and falling == sorted(falling, reverse=True) and falling[-1] > 0


def test_a_longer_run_follows_the_longer_curve() -> None:
    """A run of 100 steps that is resumed for 200 goes on where the curve of 200 is, with no memory of the 100."""
    longer = curve(200, "one_cycle", 0.1)
    resumed = [learning_rate_factor(step, 200, "one_cycle", 0.1) for step in range(100, 200)]
    assert resumed == longer[100:]
    assert longer[100] > 0.5 > learning_rate_factor(99, 100, "one_cycle", 0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    net = Net()
    groups = build_optimizer(net, name, lr=0.1, weight_decay=0.05, options={}).param_groups
    decayed = {id(tensor) for group in groups if group["weight_decay"] == 0.05 for tensor in group["params"]}
    spared = {id(tensor) for group in groups if group["weight_decay"] == 0 for tensor in group["params"]}
    assert decayed == {id(net.conv.weight), id(net.head.weight)}
    assert spared == {id(tensor) for tensor in net.parameters()} - decayed
    assert all(group["lr"] == 0.1 for group in groups)


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    groups = build_optimizer(net, "adamw", 0.1, 0.05, {}).param_groups
    optimised = {id(tensor) for group in groups for tensor in group["params"]}
    assert optimised == {id(tensor) for tensor in [*net.norm.parameters(), *net.head.parameters()]}


def test_sgd_has_nesterov_momentum_and_momentum_has_not() -> None:
    sgd = build_optimizer(Net(), "sgd", 0.1, 0, {}).param_groups[0]
    momentum = build_optimizer(Net(), "momentum", 0.1, 0, {"momentum": 0.8}).param_groups[0]
    assert (sgd["nesterov"], momentum["nesterov"], momentum["momentum"]) == (True, False, 0.8)


def test_options_reach_the_optimizer_and_a_step_moves_the_weights() -> None:
    net = Net()
    optimizer = build_optimizer(net, "adamw", lr=0.1, weight_decay=0, options={"betas": (0.5, 0.6)})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    before = net.head.weight.detach().clone()
    net.head(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    # Adam's first step is the learning rate, whatever the gradient.
    torch.testing.assert_close(net.head.weight.detach(), before - 0.1)


@pytest.mark.parametrize("is_native", [True, False])
def test_muon_orthogonalizes_in_bfloat16_only_where_that_is_native(
    is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "has_native_bf16", lambda accelerator: is_native and accelerator == "cpu")
    layer = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    options = {"momentum": 0.0, "adjust_lr_fn": "original"}
    build_optimizer(layer, "muon", lr=1.0, weight_decay=0, options=options).step()
    weight = layer.weight.detach()
    assert torch.equal(weight, weight.bfloat16().float()) is is_native
    assert torch.linalg.svdvals(weight).sub(1).abs().max() < 0.3


@pytest.mark.parametrize(
    ("name", "options", "is_fused"),
    [
        ("adamw", {}, True),
        ("sgd", {}, True),
        ("adamw", {"fused": False}, False),
        ("adamw", {"foreach": True}, None),
        ("lamb", {}, None),  # has no such step
    ],
)
def test_the_fused_step_is_taken_where_there_is_one(name: str, options: dict[str, bool], is_fused: bool | None) -> None:
    (group,) = build_optimizer(Net(), name, 0.1, 0, options).param_groups
    assert group.get("fused") is is_fused


def test_the_fused_step_ends_where_the_other_does() -> None:
    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, options in zip(nets, ({}, {"fused": False}), strict=True):
        optimizer = build_optimizer(net, "adamw", 0.01, 0.05, options)
        for step in range(20):
            optimizer.zero_grad()
            net.head(torch.tensor([[1.0, step]])).square().sum().backward()
            optimizer.step()
    for fused, plain in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamww", {}, "optimizer=adamww: timm has no such optimizer; for example adamw"),
        ("adamw", {"bettas": (0.9, 0.99)}, "optimizer_options={'bettas': (0.9, 0.99)}: adamw refuses them"),
        ("adamw", {"eps": -1.0}, "optimizer_options={'eps': -1.0}: adamw refuses them"),
    ],
)
def test_a_mistake_is_named_in_one_line(name: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_optimizer(Net(), name, 0.1, 0.05, options)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
