"""Training on cached features: the same run, computed once, never stale, and said where it cannot be."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.models import create_model
from lit_cnn.training.callbacks import RunCheckpoints
from lit_cnn.training.checkpoints import digest_of_weights, load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.feature_cache import FeatureCache
from lit_cnn.training.feature_store import store_folder
from lit_cnn.training.optimization import path_of_penalties
from lit_cnn.training.process import quiet_lightning
from lit_cnn.training.transfer import Freezer, check_split, split_net
from tests.forks import start
from tests.runs import image_folder, tracked_runs
from tests.training.test_classifier import trainer
from tests.training.test_transfer import SIZE, classifier, digits

FLIP: list[dict[str, Any]] = [{"class_path": "albumentations.HorizontalFlip"}]
CLASSES = ("dark", "medium", "bright")


def run(model: LitClassifier, data: ImageDataModule, cached: bool = True, **options: Any) -> dict[str, float]:
    """Trains for three epochs and returns the last metrics."""
    callbacks = [*options.pop("callbacks", ()), *([FeatureCache()] if cached else [])]
    fit = trainer(max_epochs=3, callbacks=callbacks, **options)
    fit.fit(model, datamodule=data)
    return {name: float(value) for name, value in fit.callback_metrics.items()}


def farthest(one: LitClassifier, other: LitClassifier) -> float:
    """The largest difference of two weights, or of two entries of buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def entries() -> set[str]:
    """The names of the entries that are whole."""
    return {file.parent.name for file in store_folder().glob("*/entry.json")}


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("test_resnet", {"transfer": "head_only"}),
        ("test_resnet", {"transfer": "last_stages", "train_stages": 2}),
        ("test_resnet", {"transfer": "head_only", "cut_at": 2, "head": "mlp"}),
        ("lenet5", {"transfer": "head_only", "arch_options": {"batch_norm": True}}),
        ("torchvision/shufflenet_v2_x0_5", {"transfer": "last_stages"}),
        ("test_efficientnet", {"transfer": "head_only", "arch_options": {"drop_rate": 0.5}}),
        ("test_vit", {"transfer": "last_stages", "train_stages": 2, "arch_options": {"drop_path_rate": 0.5}}),
        ("deit_tiny_distilled_patch16_224", {"transfer": "last_stages", "arch_options": {"depth": 3}}),
        (
            "swin_tiny_patch4_window7_224",
            {
                "transfer": "last_stages",
                "arch_options": {"depths": (1, 1, 1, 2), "embed_dim": 24, "drop_path_rate": 0.5},
            },
        ),
    ],
)
def test_weights_and_metrics_are_those_of_a_run_on_images(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    options = {"lr": 0.01, "feature_cache": "fp32", **options}
    live, cached = (classifier(tmp_path, arch, **{**options}) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    live_metrics, metrics = run(live, digits(), cached=False), run(cached, digits())
    assert len(entries()) == 2  # train and val
    assert farthest(live, cached) < 1e-5
    assert any(not torch.equal(before[name], tensor) for name, tensor in cached.state_dict().items())
    assert metrics == pytest.approx(live_metrics, abs=1e-5)
    assert cached.split is None and cached.eval()(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).shape == (1, 10)


def test_weights_are_the_same_bit_for_bit_where_both_compute_the_same_batches(tmp_path: Path) -> None:
    live, cached = (classifier(tmp_path, transfer="head_only", lr=0.01, feature_cache="fp32") for _ in range(2))
    data = [digits(batch_size=64) for _ in "ab"]
    run(live, data[0], cached=False)
    run(cached, data[1])
    assert farthest(live, cached) == 0


def test_where_training_computes_in_bfloat16_to_keep_it_so_changes_nothing(tmp_path: Path) -> None:
    live, cached, solved = (
        classifier(tmp_path, transfer="head_only", lr=0.01, head_solver=solver) for solver in ("sgd", "sgd", "lbfgs")
    )
    data = [digits(batch_size=64) for _ in "abc"]
    run(live, data[0], cached=False, precision="bf16-mixed")
    run(cached, data[1], precision="bf16-mixed")
    assert farthest(live, cached) == 0
    losses = [run(solved, data[2], precision=precision)["train/loss"] for precision in ("bf16-mixed", "32-true")]
    assert losses[0] == pytest.approx(losses[1], abs=0.01) and losses[0] < 1.5


@pytest.mark.parametrize(("stored_as", "num_bytes"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_a_second_run_finds_what_the_first_computed_and_becomes_the_same(
    stored_as: str, num_bytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (classifier(tmp_path, transfer="head_only", feature_cache=stored_as) for _ in range(2))
    run(first, digits())
    run(second, digits())
    assert farthest(first, second) == 0
    said = capsys.readouterr().err
    how = re.findall(rf"64 training images, 143 of val: (\w+), [\d.]+ kB as {stored_as} in {store_folder()}", said)
    assert how == ["computed", "found"]
    arrays = [np.load(file) for file in store_folder().glob("*/features.npy")]
    assert sorted(array.shape for array in arrays)[0][0] == 64
    assert {array.itemsize for array in arrays} == {num_bytes}


def folder_run(root: Path, model_options: dict[str, Any], **data_options: Any) -> set[str]:
    """Trains on a folder of images and returns the entries that this needed anew."""
    before = entries()
    options: dict[str, Any] = {"image_size": SIZE, "num_workers": 0, "batch_size": 8, "normalize": "imagenet"}
    data = ImageDataModule("image_folder", str(root), **{**options, **data_options})
    size: dict[str, Any] = {
        "num_classes": 3,
        "in_channels": 3,
        "image_size": data.image_size,
        "interpolation": data.interpolation,
        "class_names": data.class_names,
    }
    model = LitClassifier("test_resnet", mean=data.mean, std=data.std, **size, **model_options)
    run(model, data, limit_train_batches=1)
    return entries() - before


def test_folds_share_the_features_of_all_images_that_are_not_test(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "folds", CLASSES, 12)
    torch.manual_seed(0)
    state = create_model("timm/test_resnet", num_classes=3, in_channels=3, image_size=SIZE).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    for augment, num_entries in (({}, 1), ({"augment": FLIP, "views": 2}, 3)):
        # Without augmentation and in fp32, training and validation see the same: one entry is enough for both.
        for fold in range(2):
            options: dict[str, Any] = {"num_folds": 2, "fold": fold, "image_size": SIZE, "num_workers": 0, **augment}
            data = [
                ImageDataModule("image_folder", str(root), normalize="imagenet", batch_size=8, **options) for _ in "ab"
            ]
            given: dict[str, Any] = {"num_classes": 3, "in_channels": 3, "class_names": data[0].class_names}
            given |= {name: getattr(data[0], name) for name in ("image_size", "mean", "std", "interpolation")}
            given |= {"weights": str(tmp_path / "weights.pth"), "transfer": "head_only", "lr": 0.01}
            live, cached = (LitClassifier("test_resnet", feature_cache="fp32", **given) for _ in "ab")
            before = entries()
            metrics, found = run(live, data[0], cached=False), run(cached, data[1])
            assert found == pytest.approx(metrics, abs=1e-5) and farthest(live, cached) < 1e-5
            assert len(entries() - before) == (num_entries - ("views" in augment) if fold == 0 else 0)


def test_any_change_of_what_features_depend_on_is_a_miss(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", CLASSES, per_class=12)
    torch.manual_seed(0)
    state = create_model("timm/test_resnet", num_classes=3, in_channels=3, image_size=SIZE).state_dict()

    def weights(name: str) -> dict[str, Any]:
        torch.save(state, tmp_path / name)
        return {"weights": str(tmp_path / name), "transfer": "head_only"}

    same = weights("one.pth")
    assert len(folder_run(root, same)) == 2
    assert folder_run(root, same | {"lr": 0.5, "weights": weights("copy.pth")["weights"]}) == set()
    assert folder_run(root, same, batch_size=4, num_workers=1) == set()
    # In what a layer computes, and in what it is given.
    first_weight = next(iter(state))
    last_mean = [name for name in state if name.endswith("running_mean")][-1]
    for name in (first_weight, last_mean):
        state[name].view(-1)[0] = torch.nextafter(state[name].view(-1)[0], torch.tensor(9.0))
        assert len(folder_run(root, weights(f"{name}.pth"))) == 2, name
    same = weights("two.pth")
    assert folder_run(root, same) == set()
    state["fc.bias"] += 1  # not frozen, no part of it
    assert folder_run(root, weights("head.pth")) == set()
    for change in ({"feature_cache": "fp32"}, {"transfer": "last_stages"}, {"cut_at": 2}):
        assert len(folder_run(root, {**same, **change})) == 2, change
    for data_change in (
        {"image_size": 40},
        {"interpolation": "bicubic"},
        {"mean": [0.5, 0.4, 0.4]},
        {"std": [0.3, 0.2, 0.2]},
    ):
        assert len(folder_run(root, same, **data_change)) == 2, data_change
    assert len(folder_run(root, same, limit_train=20)) == 1  # of the training images alone
    assert len(folder_run(root, same, reduced_decode=True)) == 1  # likewise
    assert len(folder_run(root, same, augment=FLIP, views=2)) == 2  # two views; val is as it was
    assert len(folder_run(root, same, augment=FLIP, views=2, seed=1)) == 2
    assert len(folder_run(root, same, augment=FLIP, views=3)) == 1  # two of the three are known
    assert len(folder_run(root, same, augment=[{"class_path": "albumentations.VerticalFlip"}], views=2)) == 2
    assert len(folder_run(root, same, train_crop="random_resized", views=1)) == 1
    assert len(folder_run(root, same, train_crop="random_resized", crop_scale=(0.1, 0.2), views=1)) == 1
    file = root / "dark" / "03.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[5, 5, 1] ^= 1
    Image.fromarray(pixels).save(file)
    assert len(folder_run(root, same)) in (1, 2)  # in train or in val; the split is drawn from the images' bytes


def test_fixed_views_take_turns_and_are_those_that_are_cached(tmp_path: Path) -> None:
    data = digits(augment=FLIP, views=2)
    batches = {}
    for epoch in range(4):
        loader: Any = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        order = [position for keys in loader.batch_sampler for _, position in keys]
        batches[epoch] = torch.cat([images for images, _ in loader])[np.argsort(order)]
    assert torch.equal(batches[0], batches[2]) and torch.equal(batches[1], batches[3])
    assert not torch.equal(batches[0], batches[1])
    live, cached = (classifier(tmp_path, transfer="head_only", lr=0.01, feature_cache="fp32") for _ in range(2))
    run(live, digits(augment=FLIP, views=2), cached=False)
    run(cached, digits(augment=FLIP, views=2))
    assert len(entries()) == 3
    assert farthest(live, cached) < 1e-5
    without = classifier(tmp_path, transfer="head_only", lr=0.01, feature_cache="fp32")
    run(without, digits())
    assert farthest(without, cached) > 1e-3


def test_a_balanced_epoch_reads_an_image_that_comes_again(tmp_path: Path) -> None:
    options = {"sampler": "balanced", "augment": FLIP, "views": 2}
    live, cached = (classifier(tmp_path, transfer="head_only", lr=0.01, feature_cache="fp32") for _ in range(2))
    run(live, digits(**options), cached=False)
    run(cached, digits(**options))
    assert farthest(live, cached) < 1e-5


@pytest.mark.parametrize(
    ("model_options", "data_options", "says"),
    [
        ({"transfer": "head_only"}, {"augment": FLIP}, "each epoch augments anew; give augment=[], or views=K"),
        ({"transfer": "head_only"}, {"train_crop": "random", "crop_pct": 1.0}, "each epoch augments anew"),
        ({"transfer": "head_only", "mixup": 0.2}, {}, "mixup and cutmix change the pixels"),
        ({"transfer": "gradual"}, {}, "what is frozen changes from epoch to epoch"),
        ({"transfer": "head_only", "feature_cache_gb": 1e-6}, {}, "kB of features pass feature_cache_gb=1e-06"),
    ],
)
def test_where_features_cannot_be_cached_the_run_says_why(
    model_options: dict[str, Any],
    data_options: dict[str, Any],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(classifier(tmp_path, **model_options), digits(**data_options))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "feature" in line]
    assert line.startswith("feature cache off: ") and says in line
    assert not entries()


@pytest.mark.parametrize("options", [{"transfer": "full"}, {"transfer": "head_only", "feature_cache": "off"}])
def test_nothing_is_said_where_nobody_expects_a_cache(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(classifier(tmp_path, **options), digits())
    assert "feature" not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    live, cached = (classifier(tmp_path, transfer="head_only") for _ in range(2))
    run(live, digits(), cached=False)
    run(cached, digits())
    assert farthest(live, cached) == 0
    assert "feature cache off: " in capsys.readouterr().err


def test_a_flipped_byte_is_found_and_the_entry_computed_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (classifier(tmp_path, transfer="head_only") for _ in range(2))
    run(first, digits())
    files = sorted(store_folder().glob("*/features.npy"))
    for file in files:
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
    capsys.readouterr()
    run(second, digits())
    said = capsys.readouterr().err
    for file in files:
        assert f"lit-cnn: {file} was changed after it was written (SHA-256 differs): computing it anew" in said
    assert said.count(" of val: computed, ") == 1
    assert farthest(first, second) == 0


@pytest.mark.parametrize("options", [{"transfer": "head_only"}, {"transfer": "head_only", "head_solver": "lbfgs"}])
def test_a_resume_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    class Copies(RunCheckpoints):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            if trainer.global_step == 6 and self.folder:  # the second of four steps in the second of three epochs
                (tmp_path / "last.ckpt").rename(tmp_path / "middle.ckpt")

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.solves_head and self.folder and trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    checkpoints = Copies(every_seconds=0)
    checkpoints.folder = tmp_path
    whole, resumed = (classifier(tmp_path, lr=0.01, **options) for _ in range(2))
    run(whole, digits(), callbacks=[checkpoints])
    with quiet_lightning():
        fit = trainer(max_epochs=3, callbacks=[Copies(), FeatureCache()])
        fit.fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert digest_of_weights(resumed.state_dict()) == digest_of_weights(whole.state_dict())


def test_the_commands_run_is_the_same_with_and_without_and_predicts_on_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "images", CLASSES, per_class=15)
    torch.manual_seed(0)
    torch.save(create_model("timm/test_resnet", num_classes=3, in_channels=3, image_size=SIZE).state_dict(), "w.pth")
    given = ["--data.dataset=image_folder", f"--data.root={root}", "--data.image_size=32", "--data.num_workers=0"]
    given += ["--model.arch=test_resnet", "--model.weights=w.pth", "--model.transfer=head_only", "--model.lr=0.01"]
    given += ["--trainer.max_epochs=4", "--trainer.precision=32-true", "--data.batch_size=8"]
    for more in (["--model.feature_cache=fp32"], ["--model.feature_cache=off"], ["--model.head_solver=lbfgs"]):
        assert main(["fit", *given, *more]) == 0
    cached, live, solved = tracked_runs(tmp_path, "fit")
    assert [each.params["feature_cache"] for each in (cached, live, solved)] == ["fp32", "off", "bf16"]
    names = [name for name in live.history if name.startswith(("train/", "val/", "best/", "test/"))]
    assert len(names) > 10
    for name in names:
        assert np.allclose(cached.history[name], live.history[name], atol=1e-5), name
    assert {*solved.history} - {*live.history} == {"train/l2"} and "lr" not in solved.history
    assert [step for step, _ in solved.history["train/l2"]] == [0, 1, 2, 3]
    assert float(solved.params["best_l2"]) == path_of_penalties(4)[int(solved.metrics["best/epoch"])]
    files = [each.artifacts / "checkpoints" / "best.ckpt" for each in (cached, live, solved)]
    one, other = (load_checkpoint(file)["state_dict"] for file in files[:2])
    assert one.keys() == other.keys() == load_checkpoint(files[2])["state_dict"].keys()
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-5) for name in one)
    for each, file in zip((cached, solved), (files[0], files[2]), strict=True):
        capsys.readouterr()
        assert main(["test", "--ckpt_path", str(file)]) == 0
        assert f"test/acc  {each.metrics['test/acc']:.4f}" in capsys.readouterr().out
        assert main(["predict", "--ckpt_path", str(file), "--folder", str(root / "dark"), "--output", "p.csv"]) == 0
        assert len(Path("p.csv").read_text().splitlines()) == 16


@pytest.mark.slow
def test_of_eight_runs_at_once_one_computes_and_all_finish(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", CLASSES, per_class=15)
    torch.manual_seed(0)
    torch.save(create_model("timm/test_resnet", num_classes=3, in_channels=3, image_size=SIZE).state_dict(), "w.pth")
    given = ["--data.dataset=image_folder", f"--data.root={root}", "--data.image_size=32", "--data.num_workers=0"]
    given += ["--model.arch=test_resnet", "--model.weights=w.pth", "--model.transfer=head_only", "--track=false"]
    with Path("log.txt").open("ab") as log:
        runs = [start("fit", *given, "--trainer.max_epochs=2", cwd=tmp_path, log=log.fileno()) for _ in range(8)]
    codes, together = [each.wait() for each in runs], Path("log.txt").read_text()
    assert codes == [0] * 8, together
    for of in ("training images", "val images"):
        assert len(re.findall(rf"computing features of \d+ {of} …", together)) == 1, together
    assert len(re.findall("^features of .* of val: (?:computed|found|computed and found), ", together, re.M)) == 8
    assert len(entries()) == 2


def test_lbfgs_finds_the_minimum_that_scikit_learn_finds(tmp_path: Path) -> None:
    model, data = classifier(tmp_path, transfer="head_only", head_solver="lbfgs", feature_cache="fp32"), digits()
    run(model, data)
    features: list[torch.Tensor] = []
    model.net.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        batches = [(model(images), labels) for images, labels in data.view_loader(0)]
    logits, labels = torch.cat([each for each, _ in batches]), torch.cat([each for _, each in batches])
    penalty = path_of_penalties(3)[-1]
    reference = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=10_000)
    reference.fit(torch.cat(features).double().numpy(), labels.numpy())
    probabilities = torch.from_numpy(reference.predict_proba(torch.cat(features).double().numpy()))
    assert (logits.double().softmax(1) - probabilities).abs().max() < 0.02
    assert nn.functional.cross_entropy(logits, labels) < 1.5  # a guess has 2.3


@pytest.mark.parametrize(
    ("model_options", "data_options", "says"),
    [
        ({"transfer": "last_stages"}, {}, "transfer is last_stages"),
        ({"transfer": "full"}, {}, "nothing is frozen"),
        ({"feature_cache": "off"}, {}, "feature_cache=off"),
        ({"head": "mlp"}, {}, "is not one fully connected layer"),
        ({"mixup": 0.5}, {}, "mixup"),
        ({}, {"augment": FLIP}, "each epoch augments anew"),
        ({}, {"augment": FLIP, "views": 2}, "augment and train_crop change the images"),
        ({}, {"sampler": "balanced"}, "sampler=balanced"),
        ({"arch": "test_efficientnet", "arch_options": {"drop_rate": 0.5}}, {}, "there is a dropout before the head"),
    ],
)
def test_lbfgs_is_refused_where_it_has_no_one_minimum(
    model_options: dict[str, Any], data_options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = classifier(tmp_path, **{"transfer": "head_only", "head_solver": "lbfgs", **model_options})
    with pytest.raises(UsageError, match=f"^head_solver=lbfgs: .*{re.escape(says)}") as caught:
        FeatureCache().plan(trainer(max_epochs=1), model, digits(**data_options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "size"), [("lit/googlenet", 64), ("lit/resnet20", 32), ("timm/vgg11", 32), ("timm/densenet121", 32)]
)
@pytest.mark.parametrize("regime", ["head_only", "last_stages"])
def test_a_network_is_cut_where_its_frozen_part_ends(arch: str, size: int, regime: Any) -> None:
    net = create_model(arch, num_classes=10, in_channels=3, image_size=size)
    freezer = Freezer(net.train(), arch, regime, 1, 1)
    freezer.keep_frozen_in_eval()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    split = split_net(net)
    freezer.keep_frozen_in_eval()
    check_split(net, split, torch.rand(2, 3, size, size))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert not any(parameter.requires_grad for parameter in split.frozen.parameters())
    late = {id(parameter) for parameter in split.late[True].parameters()}
    side_branches = [name for name, _ in net.named_parameters() if "side_branches" in name]
    trained = {id(p) for name, p in net.named_parameters() if p.requires_grad and name not in side_branches}
    assert trained <= late and late < {id(parameter) for parameter in net.parameters()}


def test_parts_that_differ_from_the_whole_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net = create_model("lenet5", num_classes=10, in_channels=1, image_size=32)
    freezer: Callable[[], None] = Freezer(net.train(), "lenet5", "head_only", 1, 1).keep_frozen_in_eval
    freezer()
    split = split_net(net)
    (classifier_of_it,) = [name for name, module in net.named_modules() if module is net.get_classifier()]  # type: ignore[operator]
    net.set_submodule(classifier_of_it, nn.Linear(84, 10))
    with pytest.raises(ValueError, match="other logits than the whole"):
        check_split(net, split, torch.rand(2, 1, 32, 32))
