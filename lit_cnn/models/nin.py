"""Network in Network, and its building block: the 1x1 convolution."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LEAST_SIZE = 4  # pixels: 4 -> 2 -> 1, the two poolings


def conv1x1(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    """Returns a convolution that applies one fully connected layer at each position.

    It mixes channels and sees no neighbours, so it can shrink the number of channels (cheaply, before a costly
    convolution: GoogLeNet's bottleneck), keep it (with a ReLU: another non-linear layer) or grow it.

    Args:
        in_channels: Channels of the maps `(N, in_channels, H, W)` that it takes.
        out_channels: Channels of the maps `(N, out_channels, H, W)` that it returns.
        bias: Whether each output channel has a bias.
    """
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def with_relu(conv: nn.Conv2d, batch_norm: bool) -> nn.Sequential:
    """Returns the convolution followed by a ReLU, and by BatchNorm between the two if asked for.

    Draws its weights as He et al. 2015, "Delving deep into rectifiers", section 2.2: from a normal distribution of
    variance 2 / inputs, with biases 0, so that the values neither fade nor grow from one layer with a ReLU to the next.

    Args:
        conv: Without a bias if `batch_norm`, which has one of its own.
        batch_norm: Whether there is a BatchNorm layer.
    """
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norm = [nn.BatchNorm2d(conv.out_channels)] if batch_norm else []
    return nn.Sequential(conv, *norm, nn.ReLU(inplace=True))


class NetworkInNetwork(nn.Module):
    """Network in Network in its CIFAR form: three stages, each a convolution and two 1x1 convolutions.

    Lin, Chen and Yan 2013, "Network in network", section 3. The paper gives no widths; these are the ones of the
    authors' released Caffe definition for CIFAR-10 (192, 160, 96 | 192, 192, 192 | 192, 192, classes). At 32 px, with
    three channels and ten classes, it has 966,986 parameters.

    The last 1x1 convolution makes one map for each class, and global average pooling makes a logit of each map: there
    is no fully connected layer over positions. Without a non-linearity between them, the convolution and the mean may
    change places, so here the maps are averaged first and the same weights are applied once, as an `nn.Linear`, rather
    than at all 64 positions.

    The paper sets initial weights by hand; here they follow the number of inputs (`with_relu`), at any width. With
    torch's own, the loss on scikit-learn's digits was 1.98 after 300 steps of AdamW, with these 0.64 (one run each).

    Deviation from the paper: its equation 2 and the released definition have a ReLU after the last 1x1 convolution too,
    before the mean. Logits could then not fall below 0, and a class whose map is 0 everywhere would get no gradient; it
    is left out here, as in every other network's logits. The paper's class maps are this classifier, applied at each
    position of `forward_features`.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 4; the network takes other sizes as well.
        batch_norm: BatchNorm (Ioffe and Szegedy 2015) between each convolution and its ReLU; not in the paper.
        drop_rate: Probability of dropout after each of the two poolings, in [0, 1).
        width: Factor on the number of channels of each layer, above 0.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.

    Raises:
        ValueError: If an option is out of its range, or the image too small.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        batch_norm: bool = False,
        drop_rate: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size < _LEAST_SIZE:
            raise ValueError(f"Network in Network takes images of {_LEAST_SIZE} px or more, not {image_size}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate {drop_rate}: give a probability in [0, 1)")
        if not width > 0:
            raise ValueError(f"width {width}: give a factor above 0")
        w192, w160, w96 = (max(1, round(width * channels)) for channels in (192, 160, 96))
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = w192
        self.stage1 = _mlpconv(5, [in_channels, w192, w160, w96], batch_norm)
        self.stage2 = _mlpconv(5, [w96, w192, w192, w192], batch_norm)
        self.stage3 = _mlpconv(3, [w192, w192, w192], batch_norm)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = _linear(self.head_hidden_size, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, H, W)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps that the last 1x1 convolution sees, `(N, 192, 8, 8)` at 32 px, float, at least 0."""
        # N x 3 x 32 x 32. Caffe's pooling counts a window that the edge cuts off: ceil_mode.
        maps = self.stage1(images)  # N x 96 x 32 x 32
        maps = self.dropout(F.max_pool2d(maps, 3, 2, ceil_mode=True))  # N x 96 x 16 x 16
        maps = self.stage2(maps)  # N x 192 x 16 x 16
        maps = self.dropout(F.avg_pool2d(maps, 3, 2, ceil_mode=True))  # N x 192 x 8 x 8
        return self.stage3(maps)  # N x 192 x 8 x 8

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`: the mean of each class map.

        Args:
            features: Maps `(N, 192, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or the mean of each map `(N, 192)` with `pre_logits`.
        """
        means = features.mean((2, 3))  # N x 192
        return means if pre_logits else self.classifier(means)  # N x num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out.
        """
        self.num_classes = num_classes
        self.classifier = _linear(self.head_hidden_size, num_classes).to(next(self.stage3.parameters()))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the stem, then a group for each stage, or each convolution.

        Args:
            coarse: One group for each of the three stages rather than for each convolution.
        """
        if coarse:
            return {"stem": r"^stage1", "blocks": r"^stage(\d)"}
        return {"stem": r"^stage1\.0", "blocks": r"^stage(\d)\.(\d)"}


def _mlpconv(kernel_size: int, channels: list[int], batch_norm: bool) -> nn.Sequential:
    """Returns the paper's mlpconv layer: a convolution that keeps height and width, then 1x1 convolutions."""
    first = nn.Conv2d(channels[0], channels[1], kernel_size, padding=kernel_size // 2, bias=not batch_norm)
    rest = [conv1x1(before, after, bias=not batch_norm) for before, after in pairwise(channels[1:])]
    return nn.Sequential(*(with_relu(conv, batch_norm) for conv in [first, *rest]))


def _linear(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features) if out_features > 0 else nn.Identity()
