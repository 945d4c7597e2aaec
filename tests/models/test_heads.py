"""A network cut after one of its stages, and other heads."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.models import create_model
from lit_cnn.models.heads import CutNet, with_new_head
from lit_cnn.models.stages import stage_parameters
from lit_cnn.training.classifier import LitClassifier
from tests.training.test_classifier import digits, trainer

SIZE = 64
ARCHS = ["test_resnet", "tf_efficientnet_lite0", "convnext_atto", "residual18", "googlenet", "torchvision/resnet18"]


def build(arch: str) -> Any:
    torch.manual_seed(0)
    return create_model(arch, num_classes=10, in_channels=3, image_size=SIZE).eval()


def cut(arch: str, cut_at: int, head: Any = "linear") -> CutNet:
    net = with_new_head(build(arch), cut_at, head, 7, 3, SIZE)
    assert isinstance(net, CutNet)
    return net.eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_after_a_cut_the_stages_before_it_are_left_and_a_head(arch: str) -> None:
    net, whole = cut(arch, 2), build(arch)
    left = {f"backbone.{name}" for stage in stage_parameters(whole)[:3] for name in stage}
    assert {name for name, _ in net.named_parameters()} == left | {"head.weight", "head.bias"}
    assert [len(stage) for stage in stage_parameters(net)] == [*map(len, stage_parameters(whole)[:3]), 2]
    assert net(torch.randn(2, 3, SIZE, SIZE)).shape == (2, 7)


@pytest.mark.parametrize(("arch", "place"), [("test_resnet", "layer2"), ("residual18", "layer2"), ("googlenet", None)])
def test_the_maps_are_those_of_the_whole_network(arch: str, place: str | None) -> None:
    whole, images, seen = build(arch), torch.randn(2, 3, SIZE, SIZE), []
    # GoogLeNet's stage 4 sees what a pooling leaves of stage 3.
    module = whole.get_submodule(place) if place else whole.inceptions["4a"]
    module.register_forward_hook(lambda _, inputs, output: seen.append(output if place else inputs[0]))
    whole(images)
    features = cut(arch, 2 if place else 1).forward_features(images)
    assert torch.equal(features, seen[0])


def test_train_and_evaluation_mode_reach_the_stages() -> None:
    net = cut("test_resnet", 1)
    images = torch.randn(4, 3, SIZE, SIZE)
    first = net(images)
    assert not torch.equal(net.train()(images), first)
    assert not torch.equal(net.eval()(images), first), "BatchNorm's statistics have moved"


def test_an_mlp_takes_the_place_of_the_classifier() -> None:
    net: Any = with_new_head(build("test_resnet"), None, "mlp", 10, 3, SIZE)
    assert [type(layer) for layer in net.get_classifier()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert {name.split(".")[0] for name in stage_parameters(net)[-1]} == {"fc"}
    assert net(torch.randn(2, 3, SIZE, SIZE)).shape == (2, 10)
    assert len(list(cut("test_resnet", 1, "mlp").head.children())) == 3


def test_neither_asked_for_changes_nothing() -> None:
    net = build("test_resnet")
    assert with_new_head(net, None, "linear", 10, 3, SIZE) is net


@pytest.mark.parametrize(
    ("arch", "cut_at", "says"),
    [
        ("test_resnet", 9, r"cut_at=9: no such stage .* 0 \(conv1.0\), 1 \(layer1.0.conv1\), .* 5 \(fc\)"),
        ("test_resnet", -1, "cut_at=-1: no such stage"),
        ("test_resnet", 5, "cut_at=5: no such stage to end with"),
    ],
)
def test_a_stage_that_is_not_there_is_told_with_the_list(arch: str, cut_at: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        cut(arch, cut_at)
    assert "\n" not in str(caught.value)


def test_a_classifier_without_weights_takes_no_mlp() -> None:
    with pytest.raises(UsageError, match=r"head=mlp: the network ends in"):
        with_new_head(create_model("lenet5_1998", num_classes=10, in_channels=1, image_size=32), None, "mlp", 10, 1, 32)


def test_a_cut_network_trains_and_comes_back_from_its_hyperparameters() -> None:
    data = digits(in_channels=3)
    model = LitClassifier.for_data(data, "test_resnet", cut_at=2, head="mlp")
    trainer(max_epochs=1).fit(model, datamodule=data)
    again = LitClassifier(**dict(model.hparams))
    again.load_state_dict(model.state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again.eval()(images), model.eval()(images))
