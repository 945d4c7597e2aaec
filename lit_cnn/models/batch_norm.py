"""Batch normalisation as its paper writes it, to read and to check; the networks use torch's layers."""

import torch


def batch_statistics(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean mu and the variance sigma^2 of each channel over a batch, each `(C,)`, float.

    The variance divides by the number of values m, not by m - 1. (Torch normalises with this one too, but keeps the one
    over m - 1 as its running variance, as the paper's Algorithm 2 does.)

    Args:
        maps: `(N, C)` or `(N, C, H, W)`, float; over maps, each position counts as a value (section 3.2).

    Raises:
        ValueError: If `maps` has neither two nor four axes.
    """
    axes = _axes_but_the_channels(maps)
    mean = maps.mean(axes, keepdim=True)
    variance = (maps - mean).square().mean(axes)
    return mean.flatten(), variance


def batch_norm(maps: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Normalises each channel over the batch, then scales and shifts it.

    Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate
    shift", Algorithm 1: `gamma * (x - mu) / sqrt(sigma^2 + epsilon) + beta`. With gamma = sqrt(sigma^2 + epsilon) and
    beta = mu it returns `maps`: a layer that can learn to do nothing takes no power away from the network.

    Args:
        maps: `(N, C)` or `(N, C, H, W)`, float.
        gamma: Scale of each channel, `(C,)`, float.
        beta: Shift of each channel, `(C,)`, float.
        epsilon: Added to the variance, at least 0; keeps a constant channel from a division by 0.

    Returns:
        Maps of the same shape; each channel has mean beta and standard deviation gamma (a little less, by epsilon).

    Raises:
        ValueError: If `maps` has neither two nor four axes.
    """
    mean, variance = batch_statistics(maps)
    shape = [1, -1] + [1] * (maps.dim() - 2)  # 1 x C or 1 x C x 1 x 1
    normalized = (maps - mean.view(shape)) / (variance + epsilon).sqrt().view(shape)
    return gamma.view(shape) * normalized + beta.view(shape)


def _axes_but_the_channels(maps: torch.Tensor) -> list[int]:
    if maps.dim() not in (2, 4):
        raise ValueError(f"batch normalisation takes (N, C) or (N, C, H, W), not {tuple(maps.shape)}")
    return [axis for axis in range(maps.dim()) if axis != 1]
