"""Transfer regimes: what trains, when, and that the rest stays as it is, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.models import create_model
from lit_cnn.training.callbacks import RunCheckpoints
from lit_cnn.training.checkpoints import digest_of_weights, load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.optimization import build_optimizer, check_same_optimizer, parameter_groups
from lit_cnn.training.process import quiet_lightning
from lit_cnn.training.transfer import Freezer, Regime, first_trained_stage, split_head, starting_guess
from tests.training.test_classifier import trainer

SIZE = 32
HALF: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
ARCHS = [("test_resnet", {}), ("lenet5", {"batch_norm": True}), ("torchvision/shufflenet_v2_x0_5", {})]
# What of three epochs stays frozen, in numbers of stages from the stem, given all of them.
FROZEN: dict[Regime, Any] = {
    "head_only": lambda n: n,
    "last_stages": lambda n: n - 1,
    "gradual": lambda n: max(0, n - 2),
}


def digits(**options: Any) -> ImageDataModule:
    small: dict[str, Any] = {"image_size": SIZE, "in_channels": 3, "num_workers": 0, "limit_train": 64, **HALF}
    return ImageDataModule(**{**small, "batch_size": 16, **options})


def weights_file(folder: Path, arch: str, arch_options: dict[str, Any]) -> str:
    """Weights of another seed, with BatchNorm statistics that no fresh network has."""
    torch.manual_seed(7)
    net = create_model(arch, num_classes=10, in_channels=3, image_size=SIZE, **arch_options)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    file = folder / "weights.pth"
    torch.save({"state_dict": net.state_dict()}, file)
    return str(file)


def classifier(folder: Path, arch: str = "test_resnet", **options: Any) -> LitClassifier:
    arch_options = options.pop("arch_options", {})
    file = weights_file(folder, arch, arch_options)
    size: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": SIZE, **HALF}
    return LitClassifier(arch=arch, arch_options=arch_options, weights=file, **size, **options)


def digest_of_stages(model: LitClassifier, first: int, last: int) -> str:
    """Digest of parameters and buffers of the modules that hold the parameters of stages first to last - 1."""
    stages, _ = split_head(model.net)
    layers = {name.rpartition(".")[0] for stage in stages[first:last] for name in stage}
    state = model.net.state_dict()
    return digest_of_weights({name: tensor for name, tensor in state.items() if name.rpartition(".")[0] in layers})


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("scratch", [0, 0, 0, 0, 0, 0]),
        ("full", [0, 0, 0, 0, 0, 0]),
        ("head_only", [4, 4, 4, 4, 4, 4]),
        ("last_stages", [2, 2, 2, 2, 2, 2]),
        ("gradual", [4, 4, 3, 3, 2, 2]),
    ],
)
def test_the_first_trained_stage_epoch_by_epoch(regime: Regime, expected: list[int]) -> None:
    assert [first_trained_stage(regime, 4, 2, 2, epoch) for epoch in range(6)] == expected
    assert first_trained_stage("gradual", 4, 2, 2, 1000) == 0


@pytest.mark.parametrize(
    ("num_images", "guess"), [(990, "head_only"), (1000, "last_stages"), (9990, "last_stages"), (10_000, "full")]
)
def test_the_starting_guess_goes_by_images_a_class(num_images: int, guess: str) -> None:
    assert starting_guess(num_images, num_classes=10) == guess


@pytest.mark.parametrize(("per_class", "regime"), [(99, "head_only"), (100, "last_stages"), (1000, "full")])
def test_auto_is_the_starting_guess_for_the_training_images(per_class: int, regime: Regime, tmp_path: Path) -> None:
    model = classifier(tmp_path, transfer="auto", class_counts=[per_class + 9, *[per_class] * 8, per_class - 9])
    assert model.hparams["transfer"] == model.freezer.regime == regime


@pytest.mark.parametrize(("arch", "arch_options"), ARCHS)
@pytest.mark.parametrize("regime", FROZEN)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_trains(
    regime: Regime, arch: str, arch_options: dict[str, Any], tmp_path: Path
) -> None:
    model = classifier(tmp_path, arch, transfer=regime, arch_options=arch_options, lr=0.01)
    stages, head = split_head(model.net)
    frozen = FROZEN[regime](len(stages))
    assert len(stages) > frozen or regime == "head_only"
    before = [digest_of_stages(model, number, number + 1) for number in range(len(stages))]
    head_before = {name: model.net.get_parameter(name).clone() for name in head}
    fit = trainer(max_epochs=3)
    fit.fit(model, datamodule=digits())
    after = [digest_of_stages(model, number, number + 1) for number in range(len(stages))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [number < frozen for number in range(len(stages))]
    assert not any(torch.equal(model.net.get_parameter(name), tensor) for name, tensor in head_before.items())
    trained = {model.net.get_parameter(name) for stage in (*stages[frozen:], head) for name in stage}
    assert set(fit.optimizers[0].state) == trained


@pytest.mark.parametrize("regime", ["scratch", "full"])
def test_all_layers_train(regime: Regime, tmp_path: Path) -> None:
    fresh = partial(LitClassifier, "test_resnet", in_channels=3, image_size=SIZE, **HALF)
    model = classifier(tmp_path) if regime == "full" else fresh()
    assert model.hparams["transfer"] == regime
    before = {name: tensor.clone() for name, tensor in model.net.named_parameters()}
    trainer(max_epochs=1).fit(model, datamodule=digits())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.net.named_parameters())


@pytest.mark.parametrize("regime", FROZEN)
def test_a_resume_inside_an_epoch_goes_on_at_the_right_stage(regime: Regime, tmp_path: Path) -> None:
    class Copies(RunCheckpoints):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            if trainer.global_step == 6 and self.folder:  # the second of four steps in the second of three epochs
                (tmp_path / "last.ckpt").rename(tmp_path / "middle.ckpt")

    checkpoints = Copies(every_seconds=0)
    checkpoints.folder = tmp_path
    whole = classifier(tmp_path, transfer=regime, lr=0.01)
    trainer(max_epochs=3, callbacks=[checkpoints]).fit(whole, datamodule=digits())
    middle = load_checkpoint(tmp_path / "middle.ckpt")
    stages, head = split_head(whole.net)
    so_far = (*stages[min(FROZEN[regime](len(stages)) + (regime == "gradual"), len(stages)) :], head)
    assert len(middle["optimizer_states"][0]["state"]) == sum(map(len, so_far)), "state only for what has trained"
    resumed = classifier(tmp_path, transfer=regime, lr=0.01)
    with quiet_lightning():
        again = Copies()
        trainer(max_epochs=3, callbacks=[again]).fit(
            resumed, datamodule=digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True
        )
    assert digest_of_weights(resumed.state_dict()) == digest_of_weights(whole.state_dict())


def test_nothing_below_the_first_trained_stage_has_an_autograd_graph(tmp_path: Path) -> None:
    model = classifier(tmp_path, transfer="last_stages", train_stages=1)
    seen: dict[str, bool] = {}
    for name in ("conv1", "bn1", "layer1", "layer3", "layer4", "fc"):
        module = model.net.get_submodule(name)
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.requires_grad}))
    model(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    assert seen == {"conv1": False, "bn1": False, "layer1": False, "layer3": False, "layer4": True, "fc": True}


def test_evaluation_mode_is_that_of_frozen_modules_only(tmp_path: Path) -> None:
    model = classifier(tmp_path, transfer="last_stages", train_stages=1).eval().train()
    modes = {name: module.training for name, module in model.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert modes == {name: name.startswith("layer4") for name in modes} and len(modes) > 4


def test_dropout_is_off_in_frozen_layers_and_on_before_the_head() -> None:
    class Net(nn.Module):
        aux_weights = ()

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
            self.between = nn.Dropout()
            self.body = nn.Linear(4, 4)
            self.last = nn.Dropout()
            self.head = nn.Linear(4, 2)

        def get_classifier(self) -> nn.Module:
            return self.head

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            return {"stem": r"^stem", "blocks": r"^body"}

    net = Net()
    freezer = Freezer(net, "net", "head_only", 1, 1)
    net.train()
    freezer.keep_frozen_in_eval()
    assert [net.stem[1].training, net.between.training, net.last.training] == [False, False, True]


def test_vggs_fully_connected_layers_are_a_stage_and_a_last_norm_is_none() -> None:
    with torch.device("meta"):
        vgg, densenet, googlenet = (
            create_model(arch, num_classes=10, in_channels=3, image_size=64)
            for arch in ("vgg11", "densenet121", "googlenet")
        )
    stages, head = split_head(vgg)
    assert {name.split(".")[0] for name in stages[-1]} == {"pre_logits"}
    assert head == ["head.fc.weight", "head.fc.bias"]
    stages, head = split_head(densenet)
    assert head == ["classifier.weight", "classifier.bias"]
    assert "features.norm5.weight" in stages[-1] and "features.denseblock4.denselayer1.norm1.weight" in stages[-1]
    stages, head = split_head(googlenet)
    assert not [name for stage in (*stages, head) for name in stage if "side_branches" in name]


def test_side_branches_do_not_train_what_is_frozen(tmp_path: Path) -> None:
    model = classifier(tmp_path, "googlenet", transfer="head_only", arch_options={"width": 0.125})
    assert model.aux_weights == ()
    assert len(classifier(tmp_path, "googlenet", arch_options={"width": 0.125}).aux_weights) == 2


def test_learning_rates_fall_layer_by_layer_and_the_heads_is_a_multiple(tmp_path: Path) -> None:
    net = classifier(tmp_path).net
    groups = parameter_groups(net, 0.1, 0.05, 0.5, ["fc.weight", "fc.bias"], 3.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    assert rates["fc.weight"] == (pytest.approx(0.3), 0.05)
    assert rates["fc.bias"] == (pytest.approx(0.3), 0.0)
    assert rates["layer4.0.conv1.weight"] == (pytest.approx(0.05), 0.05)
    assert rates["layer4.0.bn1.weight"] == (pytest.approx(0.05), 0.0)
    assert rates["layer3.0.conv1.weight"][0] == pytest.approx(0.025)
    assert rates["conv1.0.weight"][0] == min(rate for rate, _ in rates.values())
    optimizer = build_optimizer(net, "sgd", 0.1, 0.05, {}, 0.5, ["fc.weight", "fc.bias"], 3.0)
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transfer": "last_stages", "train_stages": 9}, "train_stages=9: .* has 5 stages .* give 1 to 4"),
        ({"transfer": "last_stages", "train_stages": 0}, "train_stages=0"),
        ({"transfer": "gradual", "unfreeze_every": 0}, "unfreeze_every=0"),
        ({"transfer": "scratch"}, "transfer=scratch: starts from no weights"),
        ({"layer_decay": 0.0}, "layer_decay=0"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"head_lr_factor": 0.0}, "head_lr_factor=0"),
    ],
)
def test_a_regime_that_cannot_be_is_refused_in_one_line(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        classifier(tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regime", ["auto", "head_only", "last_stages", "full", "gradual"])
def test_a_regime_without_weights_is_refused(regime: Regime) -> None:
    with pytest.raises(UsageError, match=f"transfer={regime}: needs weights"):
        LitClassifier(transfer=regime)


def test_a_head_without_weights_leaves_nothing_to_train() -> None:
    net = create_model("lenet5_1998", num_classes=10, in_channels=1, image_size=32)
    with pytest.raises(UsageError, match=r"transfer=head_only: leaves nothing to train"):
        Freezer(net, "lit/lenet5_1998", "head_only", 1, 1)


def test_another_regime_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    model = classifier(tmp_path, transfer="gradual")
    saved = {"hyper_parameters": dict(classifier(tmp_path, transfer="head_only").hparams)}
    with pytest.raises(UsageError, match=r"transfer=gradual: the checkpoint was trained with head_only"):
        check_same_optimizer(saved["hyper_parameters"], model.hparams)
