"""Torchvision's networks keep timm's contract, give torchvision's logits, and take torchvision's weights."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import group_parameters

from lit_cnn.core.errors import UsageError
from lit_cnn.models import create_model, resolve_arch
from lit_cnn.models.describe import describe
from lit_cnn.models.stages import stage_parameters
from lit_cnn.models.torchvision_net import TorchvisionNet, native_size, torchvision_names
from lit_cnn.training.classifier import LitClassifier

SIZE = 64


def theirs(name: str, **options: Any) -> torch.nn.Module:
    """torchvision's own network, 1,000 classes, with running statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, **({"init_weights": True} if name == "googlenet" else {}), **options)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return net.eval()


def save(net: torch.nn.Module, folder: Path) -> str:
    file = folder / "weights.safetensors"
    save_file(net.state_dict(), file)
    return str(file)


def from_file(name: str, file: str, num_classes: int = 1000, in_channels: int = 3, **options: Any) -> TorchvisionNet:
    size = {"num_classes": num_classes, "in_channels": in_channels, "image_size": SIZE}
    net = LitClassifier(arch=f"torchvision/{name}", weights=file, arch_options=options, **size).net  # type: ignore[arg-type]
    assert isinstance(net, TorchvisionNet)
    return net.eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_logits_are_torchvisions(name: str, tmp_path: Path) -> None:
    net, images = theirs(name), torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(from_file(name, save(net, tmp_path))(images), net(images))


@pytest.mark.parametrize("aux_logits", [True, False])
def test_googlenets_weights_bring_the_change_of_pixels_that_they_expect(aux_logits: bool, tmp_path: Path) -> None:
    net, images = theirs("googlenet", transform_input=True), torch.randn(2, 3, SIZE, SIZE)
    ours = from_file("googlenet", save(net, tmp_path), aux_logits=aux_logits)
    torch.testing.assert_close(ours(images), net(images))
    assert len(ours.aux_weights) == 2 * aux_logits
    # A checkpoint brings it too, to a network that was built without weights.
    again = TorchvisionNet("googlenet", 1000, aux_logits=aux_logits).eval()
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(images), net(images))


def test_other_classes_get_a_new_classifier_and_new_side_branches(tmp_path: Path) -> None:
    net = theirs("googlenet")
    ours = from_file("googlenet", save(net, tmp_path), num_classes=7)
    weight = "inception5b.branch1.conv.weight"
    assert torch.equal(ours.backbone.get_parameter(weight), net.get_parameter(weight))
    logits, aux_logits = ours.train().forward_with_aux(torch.randn(2, 3, SIZE, SIZE))
    assert [tuple(each.shape) for each in (logits, *aux_logits)] == [(2, 7)] * 3


def test_gray_images_see_the_sum_of_the_first_convolutions_channels(tmp_path: Path) -> None:
    net, gray = theirs("resnet18"), torch.randn(2, 1, SIZE, SIZE)
    ours = from_file("resnet18", save(net, tmp_path), in_channels=1)
    torch.testing.assert_close(ours(gray), net(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("layer4.1.bn2.weight"), r"layer4.1.bn2.weight is in the network only"),
        (lambda weights: weights.update(more=torch.zeros(1)), r"more is in the weights only"),
        (lambda weights: weights.update({"layer4.1.bn2.bias": torch.zeros(3)}), r"is \(3,\), not \(512,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    weights = theirs("resnet18").state_dict()
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match=rf"weights=.* does not hold the weights of torchvision/.*{message}"):
        from_file("resnet18", str(tmp_path / "weights.safetensors"))


def test_no_network_is_one_line_in_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"weights=pretrained: the weights of torchvision/googlenet .*a file"):
        LitClassifier(arch="torchvision/googlenet", weights="pretrained", in_channels=3, image_size=SIZE)
    assert time.monotonic() - start < 5


def test_side_branches_are_given_from_the_stem_on_and_train_with_the_classifier() -> None:
    model = LitClassifier(arch="torchvision/googlenet", in_channels=3, image_size=SIZE).train()
    net: Any = model.net
    seen = {}
    for name in ("aux1", "aux2"):
        net.backbone.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    images, targets = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(4)
    _, aux_logits = net.forward_with_aux(model.normalize(images))
    assert all(torch.equal(each, seen[name]) for each, name in zip(aux_logits, ("aux1", "aux2"), strict=True))
    loss, (_, main, first, second) = model.losses(images, targets)
    torch.testing.assert_close(loss, main + 0.3 * first + 0.3 * second)
    seen.clear()
    model.eval()(images)
    assert not seen, "evaluation never pays for them"


def test_the_stages_of_resnet50_are_the_papers() -> None:
    stages = describe("torchvision/resnet50", stages=True).stages
    assert stages is not None
    assert [stage.output_shape for stage in stages[1:5]] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert stages[0].layers == ("backbone.conv1", "backbone.bn1")
    assert len(stages) == 6


@pytest.mark.parametrize("name", ["googlenet", "vgg11_bn", "swin_t", "regnet_x_400mf"])
def test_groups_hold_every_parameter_and_end_with_the_classifiers(name: str) -> None:
    with torch.device("meta"):
        net: Any = create_model(f"torchvision/{name}", num_classes=10, in_channels=1, image_size=224)
    groups = group_parameters(net, net.group_matcher())
    assert sorted(n for group in groups.values() for n in group) == sorted(n for n, _ in net.named_parameters())
    assert len(groups) > 4
    last = {n.split(".")[0] if n.startswith("classifier") else n.split(".")[1] for n in groups[max(groups)]}
    assert last == ({"classifier", "aux1", "aux2"} if name == "googlenet" else {"classifier"})


def test_names_need_their_prefix_where_timm_has_the_same() -> None:
    assert resolve_arch("torchvision/resnet18") == "torchvision/resnet18"
    assert resolve_arch("resnet18") == "timm/resnet18"
    assert len(torchvision_names()) >= 80
    with pytest.raises(UsageError, match=r"arch=squeezenet1_1: .*nearest: torchvision/squeezenet1_1$"):
        resolve_arch("squeezenet1_1")
    with pytest.raises(UsageError, match=r"nearest: torchvision/resnet18, torchvision/"):
        resolve_arch("torchvision/resnet81")


def test_what_cannot_be_cut_or_set_is_told() -> None:
    with pytest.raises(UsageError, match=r"^arch=torchvision/squeezenet1_1: ends in a Conv2d, not in a linear"):
        create_model("torchvision/squeezenet1_1", num_classes=10, in_channels=3, image_size=SIZE)
    with pytest.raises(UsageError, match=r"arch_options=width: .* its options: aux_logits, .*dropout"):
        create_model("torchvision/googlenet", num_classes=10, in_channels=3, image_size=SIZE, width=0.5)
    with pytest.raises(UsageError, match=r"image_size=8: too small for torchvision/vgg11; give 32 or more"):
        create_model("torchvision/vgg11", num_classes=10, in_channels=3, image_size=8)


def test_describe_counts_torchvisions_googlenet() -> None:
    found = describe("torchvision/googlenet")
    assert (found.native_image_size, found.in_channels, found.num_classes) == (224, 3, 1000)
    assert found.totals["parameters"] == 13_004_888  # torchvision's documentation has 6,624,904, without side branches
    assert describe("torchvision/googlenet", aux_logits=False).totals["parameters"] == 6_624_904
    assert native_size("inception_v3") == 299


def test_the_stages_of_a_vision_transformer_are_its_blocks() -> None:
    with torch.device("meta"):
        net = create_model("torchvision/vit_b_32", num_classes=7, in_channels=3, image_size=64)
    stem, *blocks, head = stage_parameters(net)
    assert {"backbone.class_token", "backbone.encoder.pos_embedding", "backbone.conv_proj.weight"} <= set(stem)
    assert [names[0].split(".")[3] for names in blocks] == [f"encoder_layer_{number}" for number in range(12)]
    assert "backbone.encoder.ln.weight" in blocks[-1] and head == ["classifier.weight", "classifier.bias"]


def test_images_too_small_for_side_branches_are_told_in_the_first_step_of_training() -> None:
    with torch.device("meta"):
        net: Any = create_model("torchvision/inception_v3", num_classes=7, in_channels=3, image_size=96)
        line = (
            r"^image_size=96: too small for the side branches of torchvision/inception_v3; give 299, or arch_options="
        )
        with pytest.raises(UsageError, match=line + r"\{aux_logits: false\}$"):
            net.forward_with_aux(torch.empty(2, 3, 96, 96))
        assert net.forward_with_aux(torch.empty(2, 3, 299, 299))[1][0].shape == (2, 7)
        without = create_model(
            "torchvision/inception_v3", num_classes=7, in_channels=3, image_size=96, aux_logits=False
        )
        assert without(torch.empty(2, 3, 96, 96)).shape == (2, 7)
