"""bfloat16 where the hardware has it: what is chosen, and what it leaves alone."""

import copy
from pathlib import Path

import pytest
import torch

from lit_cnn.core.precision import (
    default_precision,
    has_depthwise_convolutions,
    has_native_bf16,
    train_depthwise_in_float32,
)
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from tests.runs import copy_empty_store, fit, tracked_runs


def test_the_processors_flags_decide() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert has_native_bf16("cpu") == ("amx_bf16" in flags or "avx512_bf16" in flags)
    assert default_precision("cpu") == ("bf16-mixed" if has_native_bf16("cpu") else "32-true")


def test_other_accelerators() -> None:
    assert default_precision("tpu") == "32-true"
    if torch.cuda.is_available():
        assert has_native_bf16("gpu") == has_native_bf16("auto") == (torch.cuda.get_device_capability() >= (8, 0))
    else:
        assert not has_native_bf16("gpu")
        assert has_native_bf16("auto") == has_native_bf16("cpu")


@pytest.mark.parametrize(("capabilities", "native"), [({"avx512_f": True}, False), ({"amx_bf16": True}, True)])
def test_processors_that_this_machine_is_not(
    capabilities: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert has_native_bf16("cpu") == native


def test_a_run_records_its_precision_and_one_option_forces_either(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy_empty_store(tmp_path_factory.getbasetemp(), tmp_path)
    short = ("--trainer.accelerator=cpu", "--test_after_fit=false")
    for precision in ((), ("--trainer.precision=bf16-mixed",), ("--trainer.precision=32-true",)):
        assert fit(*short, *precision) == 0
    chosen, bf16, fp32 = tracked_runs(tmp_path)
    assert chosen.params["trainer.precision"] == default_precision("cpu")
    assert (bf16.params["trainer.precision"], fp32.params["trainer.precision"]) == ("bf16-mixed", "32-true")
    twin = bf16 if default_precision("cpu") == "bf16-mixed" else fp32
    assert chosen.history["val/loss"] == twin.history["val/loss"]
    losses = [run.history["train/loss"][-1][1] for run in (bf16, fp32)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    for run in (bf16, fp32):
        (checkpoint,) = tmp_path.glob(f"mlruns/journal/{run.tags['lit_cnn.key']}/last.ckpt")
        weights = load_checkpoint(checkpoint)["state_dict"].values()
        assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float32}


def test_depthwise_convolutions_are_laid_out_channels_last_and_others_are_not() -> None:
    for arch, expected in (("tf_efficientnet_lite0", True), ("mobilenetv2_050", True), ("test_resnet", False)):
        net = LitClassifier(arch=arch, num_classes=10, in_channels=3, image_size=32).net
        kernels = [each.weight for each in net.modules() if isinstance(each, torch.nn.Conv2d)]
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels) == expected
        assert has_depthwise_convolutions(net) == expected


def test_channels_last_changes_the_layout_and_no_logit() -> None:
    model = LitClassifier(arch="test_resnet", num_classes=10, in_channels=3, image_size=32).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = model(images)
    model.use_channels_last()
    assert model.normalize(images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)


def test_strided_depthwise_convolutions_train_in_float32_and_their_copies_with_their_own_weights() -> None:
    """A CPU's bfloat16 gradients of these take up to a hundred times as long."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1),
        torch.nn.Conv2d(8, 8, 3, stride=2, groups=8),
        torch.nn.Conv2d(8, 8, 3, groups=8),
    )
    train_depthwise_in_float32(net)
    train_depthwise_in_float32(net)
    assert [len(each._forward_hooks) for each in net] == [0, 1, 0]
    images = torch.randn(2, 3, 16, 16)
    expected = net(images)

    def dtypes(of: torch.nn.Sequential) -> list[torch.dtype]:
        found = []
        values = images
        with torch.autocast("cpu", torch.bfloat16):
            for each in of:
                values = each(values)
                found.append(values.dtype)
        torch.testing.assert_close(values.float(), expected, rtol=0.05, atol=0.05)
        return found

    twin = copy.deepcopy(net)  # as weight averaging has one
    assert dtypes(net) == dtypes(twin) == [torch.bfloat16, torch.float32, torch.bfloat16]
    with torch.no_grad():
        assert dtypes(net) == [torch.bfloat16] * 3
    net.requires_grad_(False)  # frozen: as the features that are kept are computed
    assert dtypes(net) == [torch.bfloat16] * 3
    for parameter in twin[1].parameters():
        torch.nn.init.zeros_(parameter)
    assert not twin[1](twin[0](images)).any()


def test_a_depthwise_convolution_that_fails_leaves_autocast_as_it_was() -> None:
    net = torch.nn.Conv2d(8, 8, 3, stride=2, groups=8)
    train_depthwise_in_float32(net)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="channels"):
            net(torch.randn(1, 3, 16, 16))
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", True), ("32-true", False)])
def test_a_fit_in_bfloat16_trains_them_so(precision: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[torch.nn.Module] = []
    monkeypatch.setattr("lit_cnn.training.classifier.train_depthwise_in_float32", changed.append)
    short = ("--trainer.accelerator=cpu", "--test_after_fit=false", "--track=false")
    assert fit(*short, f"--trainer.precision={precision}") == 0
    assert bool(changed) == expected
