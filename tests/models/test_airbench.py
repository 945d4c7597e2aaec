"""The fast net: its whitening by hand, and what of it trains."""

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from lit_cnn.models.airbench import AirBench
from tests.runs import ROOT


def patches(images: np.ndarray, size: int = 2) -> np.ndarray:
    """Every patch of `(N, C, H, W)` images as a row of `(patches, C * size * size)`, cut out one by one."""
    rows, columns = (range(side - size + 1) for side in images.shape[2:])
    cut = [images[:, :, row : row + size, column : column + size] for row in rows for column in columns]
    return np.concatenate([part.reshape(len(images), -1) for part in cut])


def digits() -> np.ndarray:
    images = load_digits().images[:, None] / 16
    return images[:200]


def photographs() -> np.ndarray:
    return np.stack(load_sample_images().images).transpose(0, 3, 1, 2)[:, :, :64, :64] / 255


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("images", [digits(), photographs()], ids=["gray", "RGB"])
def test_whitened_patches_have_variance_1_and_no_correlation(images: np.ndarray, size: int) -> None:
    channels = images.shape[1]
    net = AirBench(num_classes=10, in_channels=channels, patch=size)
    assert not net.is_whitened
    net.whiten(torch.from_numpy(np.cov(patches(images, size).T, bias=True)))
    assert net.is_whitened
    maps = net.whitening(torch.from_numpy(images).float()).detach().double()
    if size == 3:
        assert maps.shape[2:] == images.shape[2:]
        maps = maps[:, :, 1:-1, 1:-1]  # without what the zeros around the images come into
    one, negative = maps.transpose(0, 1).flatten(1).split(channels * size**2)
    torch.testing.assert_close(negative, -one)
    # The floor makes a small variance smaller still: l / (l + 0.0005) of 1.
    variances = np.linalg.eigvalsh(np.cov(patches(images, size).T, bias=True))[::-1].copy()
    expected = torch.from_numpy(np.diag(variances / (variances + 5e-4)))
    torch.testing.assert_close(torch.cov(one, correction=0), expected, rtol=1e-3, atol=1e-3)


def test_the_first_component_is_the_mean_of_the_patch() -> None:
    net = AirBench(num_classes=10)
    net.whiten(torch.from_numpy(np.cov(patches(digits()).T)))
    first, *others = net.whitening.weight[:4].flatten(1)
    assert first.min() > 0.8 * first.max() > 0
    assert all(other.sum().abs() < 0.5 * other.abs().sum() for other in others)


def test_the_whitening_is_no_parameter_but_part_of_the_weights() -> None:
    net = AirBench(num_classes=10)
    net.whiten(torch.eye(4, dtype=torch.float64))
    assert [name for name, _ in net.named_parameters() if name.startswith("whitening")] == []
    other = AirBench(num_classes=10)
    other.load_state_dict(net.state_dict())
    assert other.is_whitened
    assert torch.equal(other.whitening.weight, net.whitening.weight)


def test_has_71328_parameters_and_maps_of_these_sizes() -> None:
    net = AirBench(num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 71_328
    maps = net.whitening(torch.zeros(1, 1, 28, 28))
    sizes = []
    for block in net.blocks:
        maps = block(maps)
        sizes.append(tuple(maps.shape[1:]))
    assert sizes == [(16, 13, 13), (32, 6, 6), (64, 3, 3)]


def test_the_fast_experiments_network_has_half_the_size_before_its_first_block() -> None:
    config = yaml.safe_load((ROOT / "configs" / "experiment" / "fast_fashion_mnist.yaml").read_text())
    net = AirBench(num_classes=10, **config["model"]["arch_options"])
    trained = 9 * (18 * 32 + 32 * 96 + 96 * 96) + 2 * (32 + 96 + 96) + 96 * 10
    assert sum(parameter.numel() for parameter in net.parameters()) == trained == 117_184
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) == 4
    assert not any(isinstance(module, nn.GELU) for module in net.modules())
    seen: list[tuple[int, ...]] = []
    for module in (net.whitening, *net.blocks):
        module.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].shape[1:], output.shape[1:]]))
    assert net.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert seen == [(1, 28, 28), (18, 28, 28), (18, 14, 14), (32, 7, 7), (32, 7, 7), (96, 3, 3)]


@pytest.mark.parametrize(("patch", "pool_patches"), [(2, False), (2, True), (3, False), (3, True)])
def test_takes_images_of_two_to_the_number_of_poolings_plus_1(patch: int, pool_patches: bool) -> None:
    net = AirBench(num_classes=10, patch=patch, pool_patches=pool_patches)
    side = 2 ** (3 + pool_patches) + 1
    assert net.eval()(torch.zeros(1, 1, side, side)).shape == (1, 10)


def test_the_options_add_nothing_to_what_a_checkpoint_holds() -> None:
    plain, other = AirBench(num_classes=10), AirBench(num_classes=10, patch=3, pool_patches=True, activation="relu")
    assert list(other.state_dict()) == list(plain.state_dict())
    assert {name.partition(".")[0] for name in plain.state_dict()} == {"whitening", "blocks", "classifier"}


def test_other_widths_make_other_blocks_and_what_cannot_be_had_is_refused() -> None:
    assert AirBench(num_classes=10, widths=[4, 8]).num_features == 8
    for widths in ([], [8, 0]):
        with pytest.raises(ValueError, match="1 or more for each block"):
            AirBench(num_classes=10, widths=widths)
    for patch in (1, 4):
        with pytest.raises(ValueError, match=f"patch is 2 or 3 pixels, not {patch}"):
            AirBench(num_classes=10, patch=patch)
    with pytest.raises(ValueError, match="activation is one of gelu, relu, not tanh"):
        AirBench(num_classes=10, activation="tanh")
