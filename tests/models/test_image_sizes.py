"""Networks for one size: made for another, their weights resampled as timm does; or refused with sizes that work."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from lit_cnn.core.errors import UsageError
from lit_cnn.models import create_model
from lit_cnn.training.checkpoints import save_checkpoint
from lit_cnn.training.classifier import LitClassifier

SHALLOW: dict[str, Any] = {"depth": 2}
# A small member of each kind of position: learned, with a second token, relative in windows, relative to each other.
RESAMPLED: list[tuple[str, dict[str, Any], str]] = [
    ("vit_tiny_patch16_224", SHALLOW, "pos_embed"),
    ("deit_tiny_distilled_patch16_224", SHALLOW, "pos_embed"),
    ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}, "relative_position_bias_table"),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "relative_position_bias_table"),
]


def saved(arch: str, folder: Path, options: dict[str, Any], **size: Any) -> str:
    """A file of timm's own network, of 1,000 classes and its own size unless others are given."""
    torch.manual_seed(1)
    file = str(folder / f"{arch}.safetensors")
    save_file(timm.create_model(arch, **options, **size).state_dict(), file)
    return file


@pytest.mark.parametrize(("arch", "options", "resampled"), RESAMPLED)
@pytest.mark.parametrize("num_classes", [1000, 7])
@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers")  # in timm's own call; ours does without the lines
def test_weights_for_another_size_are_resampled_as_timm_does(
    arch: str, options: dict[str, Any], resampled: str, num_classes: int, tmp_path: Path
) -> None:
    file = saved(arch, tmp_path, options)
    theirs = timm.create_model(
        arch, pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=96, num_classes=num_classes, **options
    )
    model = LitClassifier(
        arch, arch_options=options, weights=file, num_classes=num_classes, in_channels=3, image_size=96
    )
    assert re.search(rf"; resampled for images of another size: \S*{resampled}", model.weights_note)
    expected, found = theirs.state_dict(), model.net.state_dict()
    assert expected.keys() == found.keys()
    others = {name for name in expected if not torch.equal(expected[name], found[name])}
    heads = {name for name in expected if name.startswith("head") and "norm" not in name}
    assert others == (set() if num_classes == 1000 else heads)


def test_pretrained_weights_are_resampled_too(tmp_path: Path) -> None:
    file = saved("vit_tiny_patch16_224", tmp_path, SHALLOW)
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": file}, **SHALLOW}
    size: dict[str, Any] = {"num_classes": 7, "in_channels": 3, "image_size": 96}
    found = create_model("vit_tiny_patch16_224", pretrained=True, **size, **options)
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=True, img_size=96, num_classes=7, **options)
    assert torch.equal(found.get_parameter("pos_embed"), theirs.get_parameter("pos_embed"))
    overlay = {"file": saved("resmlp_12_224", tmp_path, {})}
    with pytest.raises(UsageError, match=r"image_size=96: the pretrained weights .* cannot be resampled; give 224"):
        create_model("resmlp_12_224", pretrained=True, pretrained_cfg_overlay=overlay, **size)


@pytest.mark.parametrize("more", [{}, {"head": "mlp"}])
def test_a_runs_weights_go_on_at_another_size_with_its_head(more: dict[str, Any], tmp_path: Path) -> None:
    size: dict[str, Any] = {"num_classes": 7, "in_channels": 1, "class_names": list("abcdefg")}
    options = {"arch_options": SHALLOW, **more, **size}
    run = LitClassifier("vit_tiny_patch16_224", image_size=96, **options)
    checkpoint = {"state_dict": run.state_dict(), "hyper_parameters": dict(run.hparams), "lit_cnn": {}}
    save_checkpoint(checkpoint, tmp_path / "run.ckpt")
    larger = LitClassifier("vit_tiny_patch16_224", image_size=160, weights=str(tmp_path / "run.ckpt"), **options)
    expected, found = run.net.state_dict(), larger.net.state_dict()
    assert {name for name in expected if not torch.equal(expected[name], found[name])} == {"pos_embed"}
    by_timm = timm.layers.resample_abs_pos_embed(expected["pos_embed"], [10, 10])
    assert torch.equal(found["pos_embed"], by_timm)


def test_torchvisions_transformer_is_resampled_by_torchvisions_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, file = torchvision.models.vit_b_32(), str(tmp_path / "vit.safetensors")
    save_file(theirs.state_dict(), file)
    net = LitClassifier("torchvision/vit_b_32", weights=file, num_classes=1000, in_channels=3, image_size=96).net.eval()
    smaller = torchvision.models.vit_b_32(image_size=96).eval()
    resampled = torchvision.models.vision_transformer.interpolate_embeddings
    smaller.load_state_dict(resampled(96, 32, theirs.state_dict()))
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(net(images), smaller(images))


@pytest.mark.parametrize(
    ("arch", "image_size", "line"),
    [
        ("vit_tiny_patch16_224", 100, r"timm/\S+ does not take it: .* patches of 16 x 16 px; give 96 or 112"),
        ("mixer_s32_224", 100, r"patches of 32 x 32 px; give 96 or 128"),
        ("swin_tiny_patch4_window7_224", 99, r"patches of 4 x 4 px; give 96 or 112"),
        ("torchvision/vit_b_16", 100, "indivisible by patch size!; give 96 or 112"),
        ("levit_128s", 100, "give 96 or 112"),
    ],
)
def test_sizes_next_to_one_that_does_not_work_are_named(arch: str, image_size: int, line: str) -> None:
    with pytest.raises(UsageError, match=rf"^image_size={image_size}: .*{line}$") as caught:
        create_model(arch, num_classes=7, in_channels=3, image_size=image_size)
    assert "\n" not in str(caught.value)


def test_what_no_function_resamples_is_refused_with_the_size_of_the_weights(tmp_path: Path) -> None:
    size: dict[str, Any] = {"num_classes": 1000, "in_channels": 3, "image_size": 96}
    file = saved("mixer_s32_224", tmp_path, {})
    with pytest.raises(UsageError, match=r"mlp_tokens.* of images of another size|give image_size=224$"):
        LitClassifier("mixer_s32_224", weights=file, **size)
    file = saved("vit_tiny_patch16_224", tmp_path, SHALLOW)
    with pytest.raises(UsageError, match=r"2 of another shape: pos_embed .*, patch_embed.proj.weight"):
        LitClassifier("vit_tiny_patch16_224", arch_options={"patch_size": 32, **SHALLOW}, weights=file, **size)


def test_a_network_of_its_own_size_or_of_any_is_built_as_before() -> None:
    with torch.device("meta"):
        size: dict[str, Any] = {"num_classes": 7, "in_channels": 3}
        own = create_model("vit_tiny_patch16_224", image_size=224, **size, **SHALLOW)
        dynamic = create_model("vit_tiny_patch16_224", image_size=96, dynamic_img_size=True, **size, **SHALLOW)
    assert own.pos_embed.shape == dynamic.pos_embed.shape == (1, 197, 192)
