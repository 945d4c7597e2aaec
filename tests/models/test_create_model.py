"""Every architecture keeps timm's contract; every mistake of a name, an option or a size is told in one line."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters

from lit_cnn.core.errors import UsageError
from lit_cnn.models import BUILDERS, _Plan, create_model, least_image_size, resolve_arch

OURS = [f"lit/{name}" for name in BUILDERS]
THEIRS = ["timm/resnet18", "timm/mobilenetv3_small_050", "torchvision/googlenet"]
# Networks for images of one size only, in pixels.
FIXED_SIZES = {"lit/lenet5_1998": 32}


def small_size(arch: str) -> int:
    """In pixels: small enough to be quick, never below what the architecture takes."""
    try:
        with torch.device("meta"):
            create_model(arch, num_classes=10, in_channels=1, image_size=32)
    except UsageError:
        return least_image_size(arch)  # which takes ten times as long
    return 32


SIZES = {arch: small_size(arch) for arch in OURS + THEIRS}
# Networks whose classifier has no weights to train.
FIXED_CLASSIFIERS = {"lit/lenet5_1998"}


def shallowest(archs: list[str]) -> list[str]:
    """Of networks that differ in their depth alone, being made of the same kinds of layers, the shallowest."""
    found: dict[tuple[str, frozenset[str]], str] = {}
    for arch in sorted(archs, key=lambda arch: int(re.search(r"\d*$", arch)[0] or 0)):  # type: ignore[index]
        with torch.device("meta"):
            net = create_model(arch, num_classes=10, in_channels=1, image_size=SIZES[arch])
        kinds = frozenset(type(module).__name__ for module in net.modules())
        found.setdefault((arch.rstrip("0123456789"), kinds), arch)
    return list(found.values())


SHALLOWEST = shallowest(OURS)
every_kind = pytest.mark.parametrize("arch", [*SHALLOWEST, *THEIRS])  # a deeper one would show nothing new


def build(arch: str, in_channels: int = 1) -> Any:
    return create_model(arch, num_classes=10, in_channels=in_channels, image_size=SIZES[arch])


def draw_images(arch: str, count: int, in_channels: int = 1) -> torch.Tensor:
    return torch.randn(count, in_channels, SIZES[arch], SIZES[arch])


@every_kind
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_forward_gives_finite_logits(arch: str, in_channels: int, count: int) -> None:
    logits = build(arch, in_channels).eval()(draw_images(arch, count, in_channels))
    assert logits.shape == (count, 10)
    assert logits.isfinite().all()


@every_kind
def test_forward_is_the_head_after_the_features(arch: str) -> None:
    net, images = build(arch).eval(), draw_images(arch, 2)
    features = net.forward_features(images)
    assert features.shape[1] == net.num_features
    torch.testing.assert_close(net.forward_head(features), net(images))


@every_kind
def test_pre_logits_feed_the_classifier(arch: str) -> None:
    net = build(arch).eval()
    features = net.forward_features(draw_images(arch, 1))
    pre_logits = net.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (1, net.head_hidden_size)
    torch.testing.assert_close(net.get_classifier()(pre_logits), net.forward_head(features))


@every_kind
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    net, images = build(arch).train(), draw_images(arch, 2)
    # Side branches are computed in training only.
    logits, aux_logits = net.forward_with_aux(images) if hasattr(net, "forward_with_aux") else (net(images), [])
    sum(each.square().mean() for each in (logits, *aux_logits)).backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert without == []


@every_kind
def test_reset_classifier_changes_the_number_of_classes(arch: str) -> None:
    with torch.device("meta"):
        net, images = build(arch).eval(), draw_images(arch, 1)
    net.reset_classifier(7)
    assert net.num_classes == 7
    assert net(images).shape == (1, 7)
    net.reset_classifier(0)
    assert net(images).shape == (1, net.head_hidden_size)


@pytest.mark.parametrize("arch", OURS)
def test_reset_classifier_keeps_device_and_dtype(arch: str) -> None:
    with torch.device("meta"):
        net = build(arch).to(torch.bfloat16)
    net.reset_classifier(7)
    assert {(parameter.device.type, parameter.dtype) for parameter in net.parameters()} == {("meta", torch.bfloat16)}


@every_kind
def test_groups_run_from_the_stem_to_the_classifier(arch: str) -> None:
    with torch.device("meta"):
        net = build(arch)
    names = [name for group in group_parameters(net, net.group_matcher()).values() for name in group]
    groups = group_parameters(net, net.group_matcher(), reverse=True)  # parameter -> number of its group
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    classifier = {name for name, p in net.named_parameters() if any(p is q for q in net.get_classifier().parameters())}
    assert min(groups.values()) == 0
    assert bool(classifier) == (arch not in FIXED_CLASSIFIERS)
    assert {groups[name] for name in classifier} <= {max(groups.values())}
    assert len(set(groups.values())) >= 3, "a stem, at least one block, a classifier"


@pytest.mark.parametrize("arch", [*(arch for arch in SHALLOWEST if arch not in FIXED_SIZES), "timm/vgg11"])
def test_least_image_size_is_the_least_that_really_runs(arch: str) -> None:
    least = least_image_size(arch)
    assert least > 1
    net = create_model(arch, num_classes=10, in_channels=1, image_size=least).eval()
    assert net(torch.randn(1, 1, least, least)).isfinite().all()
    with pytest.raises(UsageError, match=rf"image_size={least - 1}: too small for {arch}; give {least} or more"):
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
        ("lit/resnet18", "resnet110, "),
        ("torchvision/resnet81", "torchvision/resnet18, "),
        ("resnet18.nope", "resnet18, "),
    ],
)
def test_an_unknown_name_is_told_with_its_nearest(arch: str, nearest: str) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        create_model(arch, num_classes=10, in_channels=1, image_size=32)
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(f"arch={arch}: no such architecture; nearest: {nearest}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "way_out"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", r"`?arch=resnet18.a1_in1k.* weights=pretrained, .* weights=FILE.safetensors"),
        ("hf_hub:timm/resnet18", r"arch=resnet18 with weights=pretrained .*weights=FILE.safetensors"),
        ("hf-hub:me/mine", r"architecture of its config.json as arch.*weights=FILE.safetensors"),
        ("local-dir:/models/mine", r"config.json"),
    ],
)
def test_an_address_in_place_of_a_name_asks_nobody_and_says_how_to_give_the_weights(arch: str, way_out: str) -> None:
    with pytest.raises(UsageError, match=rf"^arch={arch}: is an address, not a name; give .*{way_out}"):
        create_model(arch, num_classes=10, in_channels=1, image_size=32)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        (
            "lenet5",
            {"drop_rate": 0.1},
            r"arch_options=drop_rate: lit/lenet5 has no such option; its options: batch_norm",
        ),
        ("resnet18", {"drop_rat": 0.1}, r"arch_options=drop_rat: timm/resnet18 .* drop_rate, drop_path_rate"),
        (
            "resnet18",
            {"drop_rate": 7.0},
            r"arch_options=.*drop_rate.* timm/resnet18 refuses .* between 0 and 1",
        ),
        ("lenet5_1998", {"output": "softmax"}, r"arch_options=.*softmax.*rbf"),
        ("vit_tiny_patch16_224", {"img_size": 64}, r"arch_options=.*img_size.*\(32\) doesn't match model \(64\)"),
        ("resnet18", {"features_only": True}, r"arch_options=.*\(1, 64, 16, 16\) and .* not 10 logits; leave them out"),
        (
            "inception_v3",
            {"aux_logits": True},
            r"gives \(1, 10\) and \(1, 10\) .*; leave them out, or give arch=torchvision/inception_v3, which",
        ),
    ],
)
def test_what_an_architecture_refuses_is_told_in_one_line(arch: str, options: dict[str, Any], message: str) -> None:
    image_size = 299 if arch == "inception_v3" else 32
    with pytest.raises(UsageError, match=message) as caught:
        create_model(arch, num_classes=10, in_channels=1, image_size=image_size, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_classes", "image_size", "said"), [(10, 28, "32 px"), (7, 32, "ten classes|linear")])
def test_the_limits_of_a_network_of_ours_are_told(num_classes: int, image_size: int, said: str) -> None:
    with pytest.raises(UsageError, match=f"arch=lenet5_1998: .*({said})"):
        create_model("lenet5_1998", num_classes=num_classes, in_channels=1, image_size=image_size)


def test_a_network_that_takes_multiples_of_a_number_has_no_least_size_to_name() -> None:
    with pytest.raises(UsageError, match=r"image_size=150: timm/test_vit does not .* divisible.*give 144 or 160"):
        create_model("test_vit", num_classes=10, in_channels=1, image_size=150)


def test_an_option_reaches_the_architecture() -> None:
    net = create_model("resnet18", num_classes=10, in_channels=1, image_size=32, drop_rate=0.25)
    assert net.drop_rate == 0.25


@pytest.mark.parametrize("arch", ["lenet5", "darknet17"])
def test_pretrained_weights_that_do_not_exist_are_refused(arch: str) -> None:
    with pytest.raises(UsageError, match=f"arch={arch}: there are no pretrained weights"):
        create_model(arch, num_classes=10, in_channels=1, image_size=32, pretrained=True)


@pytest.mark.parametrize("arch", ["residual18", "timm/resnet18"])
def test_on_meta_a_network_is_built_once_and_is_in_train_mode(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = _Plan.build

    def counted(plan: _Plan, *arguments: Any) -> torch.nn.Module:
        built.append(plan)
        return build(plan, *arguments)

    monkeypatch.setattr(_Plan, "build", counted)
    with torch.device("meta"):
        net = create_model(arch, num_classes=10, in_channels=3, image_size=64)
    assert len(built) == 1
    assert all(module.training for module in net.modules())
    assert all(weight.requires_grad and weight.is_meta for weight in net.parameters())


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
