"""bfloat16 where the hardware has it: what is chosen, and what it leaves alone."""

from pathlib import Path

import pytest
import torch

from lit_cnn.checkpoints import load_checkpoint
from lit_cnn.classifier import LitClassifier
from lit_cnn.precision import default_precision, has_depthwise_convolutions, has_native_bf16
from tests.training import copy_empty_store, fit, tracked_runs


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
