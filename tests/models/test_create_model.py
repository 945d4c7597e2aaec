"""Every architecture keeps timm's contract; every mistake of a name, an option or a size is told in one line."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import group_parameters

from lit_cnn.errors import UsageError
from lit_cnn.models import BUILDERS, create_model, least_image_size, resolve_arch

OURS = [f"lit/{name}" for name in BUILDERS]
THEIRS = ["timm/resnet18", "timm/mobilenetv3_small_050"]
# Small enough to be quick, never below what the architecture takes.
SIZES = {arch: max(32, least_image_size(arch)) for arch in OURS + THEIRS}
every_arch = pytest.mark.parametrize("arch", SIZES)


def build(arch: str, in_channels: int = 1) -> Any:
    return create_model(arch, num_classes=10, in_channels=in_channels, image_size=SIZES[arch])


def draw_images(arch: str, count: int, in_channels: int = 1) -> torch.Tensor:
    return torch.randn(count, in_channels, SIZES[arch], SIZES[arch])


@every_arch
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_forward_gives_finite_logits(arch: str, in_channels: int, count: int) -> None:
    logits = build(arch, in_channels).eval()(draw_images(arch, count, in_channels))
    assert logits.shape == (count, 10)
    assert logits.isfinite().all()


@every_arch
def test_forward_is_the_head_after_the_features(arch: str) -> None:
    net, images = build(arch).eval(), draw_images(arch, 2)
    features = net.forward_features(images)
    assert features.shape[1] == net.num_features
    torch.testing.assert_close(net.forward_head(features), net(images))


@every_arch
def test_pre_logits_feed_the_classifier(arch: str) -> None:
    net = build(arch).eval()
    features = net.forward_features(draw_images(arch, 1))
    pre_logits = net.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (1, net.head_hidden_size)
    torch.testing.assert_close(net.get_classifier()(pre_logits), net.forward_head(features))


@every_arch
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    net = build(arch).train()
    net(draw_images(arch, 2)).square().mean().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert without == []


@every_arch
def test_reset_classifier_changes_the_number_of_classes(arch: str) -> None:
    net, images = build(arch).eval(), draw_images(arch, 1)
    net.reset_classifier(7)
    assert net.num_classes == 7
    assert net(images).shape == (1, 7)
    net.reset_classifier(0)
    assert net(images).shape == (1, net.head_hidden_size)


@pytest.mark.parametrize("arch", OURS)
def test_reset_classifier_keeps_device_and_dtype(arch: str) -> None:
    net = build(arch).to("meta", torch.bfloat16)
    net.reset_classifier(7)
    assert {(parameter.device.type, parameter.dtype) for parameter in net.parameters()} == {("meta", torch.bfloat16)}


@every_arch
def test_groups_run_from_the_stem_to_the_classifier(arch: str) -> None:
    net = build(arch)
    names = [name for group in group_parameters(net, net.group_matcher()).values() for name in group]
    groups = group_parameters(net, net.group_matcher(), reverse=True)  # parameter -> number of its group
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    classifier = {name for name, p in net.named_parameters() if any(p is q for q in net.get_classifier().parameters())}
    assert min(groups.values()) == 0
    assert {groups[name] for name in classifier} == {max(groups.values())}
    assert len(set(groups.values())) >= 3, "a stem, at least one block, a classifier"


@pytest.mark.parametrize("arch", [*OURS, "timm/vgg11"])
def test_least_image_size_is_the_least_that_really_runs(arch: str) -> None:
    least = least_image_size(arch)
    assert least > 1
    net = create_model(arch, num_classes=10, in_channels=1, image_size=least).eval()
    assert net(torch.randn(1, 1, least, least)).isfinite().all()
    with pytest.raises(UsageError, match=rf"--data.image_size {least - 1}: too small for {arch}; give {least} or more"):
        create_model(arch, num_classes=10, in_channels=1, image_size=least - 1)


def test_no_name_of_ours_shadows_one_of_timms() -> None:
    assert BUILDERS.keys().isdisjoint(timm.list_models())


@pytest.mark.parametrize(
    ("arch", "resolved"),
    [
        ("lenet5", "lit/lenet5"),
        ("lit/lenet5", "lit/lenet5"),
        ("resnet18", "timm/resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_resolve_arch_names_the_origin(arch: str, resolved: str) -> None:
    assert resolve_arch(arch) == resolved
    assert resolve_arch(resolved) == resolved


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [
        ("resnet81", "resnet18, "),
        ("LeNet5", "lenet5, "),
        ("LENET", "lenet5, "),
        ("lit/lenet", "lenet5"),
        ("timm/lenet5", ""),
        ("lit/resnet18", "lenet5"),
        ("torchvision/resnet18", "resnet18, "),
        ("resnet18.nope", "resnet18, "),
        ("hf-hub:timm/resnet18", "resnet18, "),
    ],
)
def test_an_unknown_name_is_told_with_its_nearest(arch: str, nearest: str) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        create_model(arch, num_classes=10, in_channels=1, image_size=32)
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(f"--model.arch {arch}: no such architecture; nearest: {nearest}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        (
            "lenet5",
            {"drop_rate": 0.1},
            r"--model.arch_options drop_rate: lit/lenet5 has no such option; its options: none",
        ),
        ("resnet18", {"drop_rat": 0.1}, r"--model.arch_options drop_rat: timm/resnet18 .* drop_rate, drop_path_rate"),
        (
            "resnet18",
            {"drop_rate": 7.0},
            r"--model.arch_options .*drop_rate.* timm/resnet18 refuses .* between 0 and 1",
        ),
        (
            "vit_tiny_patch16_224",
            {},
            r"--data.image_size 32: timm/vit_tiny_patch16_224 .*\(32\) doesn't match model \(224\)",
        ),
    ],
)
def test_what_an_architecture_refuses_is_told_in_one_line(arch: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        create_model(arch, num_classes=10, in_channels=1, image_size=32, **options)
    assert "\n" not in str(caught.value)


def test_an_option_reaches_the_architecture() -> None:
    net = create_model("resnet18", num_classes=10, in_channels=1, image_size=32, drop_rate=0.25)
    assert net.drop_rate == 0.25


@pytest.mark.parametrize("arch", ["lenet5", "darknet17"])
def test_pretrained_weights_that_do_not_exist_are_refused(arch: str) -> None:
    with pytest.raises(UsageError, match=f"--model.arch {arch}: there are no pretrained weights"):
        create_model(arch, num_classes=10, in_channels=1, image_size=32, pretrained=True)


def test_trying_on_meta_draws_nothing() -> None:
    torch.manual_seed(0)
    created = create_model("lenet5", num_classes=10, in_channels=1, image_size=28)
    torch.manual_seed(0)
    by_hand = type(created)(num_classes=10, in_channels=1, image_size=28)
    assert all(torch.equal(a, b) for a, b in zip(created.parameters(), by_hand.parameters(), strict=True))


def test_our_names_need_neither_torch_nor_timm(repo_root: Path) -> None:
    code = "import sys, lit_cnn.models as m; m.resolve_arch('lenet5'); print({'torch', 'timm'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_a_file_of_weights_is_loaded_where_timm_has_none(tmp_path: Path) -> None:
    trained = create_model("darknet17", num_classes=1000, in_channels=3, image_size=32)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    net = create_model(
        "darknet17", num_classes=1000, in_channels=3, image_size=32, pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trained.parameters(), strict=True))
