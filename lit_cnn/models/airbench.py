"""A fast network for small images, whose first layer is computed from them rather than trained."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

_FLOOR = 5e-4  # added to each variance, so that what hardly varies is not blown up to noise
_LOGIT_SCALE = 1 / 9
_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class AirBench(nn.Module):
    """Whitened patches, blocks of convolution, BatchNorm and activation, and the largest value of each map.

    In the spirit of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3, and small enough for a
    CPU. Its first layer gives the principal components of patches, each scaled to variance 1, and their negatives; it
    does not train. `whiten` computes it from the training images; until then its filters are drawn at random.
    `lit-cnn fit` calls it before the first step (see `lit_cnn.training.callbacks.whitening`). With one channel and ten
    classes it has 71,328 parameters by default.

    Deviations from the paper: narrower blocks, of which the first has one convolution instead of two; weights drawn at
    random instead of starting as the identity; no bias in the first layer, so that nothing goes back through the
    largest maps; BatchNorm has torch's momentum, and a scale that trains.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Part of what all networks take; this one takes images of any size that the poolings leave something
            of: `2 ** poolings + 1` px are enough, with a pooling for each block and one for `pool_patches`.
        widths: Channels of each block; a block halves height and width.
        patch: Height and width of what the first layer sees: 2 pixels, as in the paper, or 3, with images padded by 1.
        pool_patches: Halve the maps of the first layer, by their largest value: the blocks see a quarter of the pixels,
            and may be wider for the same time.
        activation: `gelu`, as in the paper, or `relu`, which is cheaper.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.

    Raises:
        ValueError: If `widths` is empty, a width is below 1, or `patch` or `activation` is none of the two.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: int = 28,
        *,
        widths: Sequence[int] = (16, 32, 64),
        patch: int = 2,
        pool_patches: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths are channels, 1 or more for each block, not {widths}")
        if patch not in (2, 3):
            raise ValueError(f"patch is 2 or 3 pixels, not {patch}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(_ACTIVATIONS)}, not {activation}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.whitening = WhiteningConv2d(in_channels, patch)
        self.pool = nn.MaxPool2d(2) if pool_patches else nn.Identity()
        act = _ACTIVATIONS[activation]
        self.act = act()
        channels = (self.whitening.out_channels, *widths)
        self.blocks = nn.Sequential(*(_block(*pair, act, is_first=not n) for n, pair in enumerate(pairwise(channels))))
        self.classifier = _linear(self.head_hidden_size, num_classes)
        self.to(memory_format=torch.channels_last)  # which is faster on a CPU in float32 too

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, S, S)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps of the last block, float; `(N, 64, 3, 3)` at 28 px by default."""
        # By default: N x 1 x 28 x 28
        maps = self.act(self.pool(self.whitening(images)))  # N x 8 x 27 x 27
        return self.blocks(maps)  # N x 16 x 13 x 13, N x 32 x 6 x 6, N x 64 x 3 x 3

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, num_features, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or features `(N, num_features)` with `pre_logits`: the largest value of each map,
            scaled by 1/9, which keeps the first logits small.
        """
        largest = features.amax((2, 3)) * _LOGIT_SCALE
        return largest if pre_logits else self.classifier(largest)

    def whiten(self, covariance: torch.Tensor) -> None:
        """Computes the first layer from the training images; see `WhiteningConv2d.whiten`."""
        self.whitening.whiten(covariance)

    @property
    def is_whitened(self) -> bool:
        """Whether the first layer was computed from images, by this run or by the one whose weights were loaded."""
        return bool(self.whitening.is_whitened)

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: an `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out.
        """
        self.num_classes = num_classes
        self.classifier = _linear(self.head_hidden_size, num_classes).to(self.whitening.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the first block, each of the others, then the classifier.

        Args:
            coarse: Part of timm's contract; the groups are the same.
        """
        return {"stem": r"^blocks\.0\.", "blocks": r"^blocks\.(\d+)"}


class WhiteningConv2d(nn.Conv2d):
    """A convolution onto the principal components of patches and their negatives; nothing of it trains.

    Args:
        in_channels: C, channels of the images; there are `2 * C * patch ** 2` filters.
        patch: P, height and width of the patches, in pixels.

    Attributes:
        weight: `(2 * C * P * P, C, P, P)`; a buffer, so that no optimizer and no weight decay comes near it.
        is_whitened: Whether it was computed from images: a bool tensor, kept with the weights.
    """

    is_whitened: torch.Tensor

    def __init__(self, in_channels: int, patch: int) -> None:
        super().__init__(in_channels, 2 * in_channels * patch**2, patch, padding=(patch - 1) // 2, bias=False)
        drawn = self.weight.detach()
        del self.weight
        self.register_buffer("weight", drawn)
        self.register_buffer("is_whitened", torch.tensor(False))

    def whiten(self, covariance: torch.Tensor) -> None:
        """Sets the filters: for each component of unit vector v and variance l, `v / sqrt(l + 0.0005)`; then negatives.

        Args:
            covariance: `(C * P * P, C * P * P)` of the patches, in the order (channel, row, column), float64, on the
                CPU.
        """
        variances, vectors = torch.linalg.eigh(covariance)
        # An eigenvector's sign is left open; fixed here by its entry of largest size.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        filters = (vectors / (variances + _FLOOR).sqrt()).T.flip(0).reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))
        self.is_whitened.fill_(True)


def _block(in_channels: int, out_channels: int, act: type[nn.Module], is_first: bool) -> nn.Sequential:
    """Returns a 3x3 convolution that halves height and width, and a second one unless this is the first block.

    Each has BatchNorm and activation. Pooled before the norm, as the paper has it: the norm then costs a quarter.
    """
    halving = _convolution(in_channels, out_channels, act, nn.MaxPool2d(2))
    return nn.Sequential(*halving, *(() if is_first else _convolution(out_channels, out_channels, act)))


def _convolution(
    in_channels: int, out_channels: int, act: type[nn.Module], *pooling: nn.Module
) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return conv, *pooling, nn.BatchNorm2d(out_channels), act()


def _linear(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features, bias=False) if out_features > 0 else nn.Identity()
