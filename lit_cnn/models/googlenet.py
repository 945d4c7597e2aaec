"""GoogLeNet: the Inception module, and two side branches that help to train it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from lit_cnn.models.nin import conv1x1, with_relu

# The paper's Table 1: channels of 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pooling's projection.
_INCEPTIONS = {  # N x 192 x 28 x 28
    "3a": (64, 96, 128, 16, 32, 32),  # N x 256 x 28 x 28
    "3b": (128, 128, 192, 32, 96, 64),  # N x 480 x 28 x 28, then pooled to 14 x 14
    "4a": (192, 96, 208, 16, 48, 64),  # N x 512 x 14 x 14, the first side branch's input
    "4b": (160, 112, 224, 24, 64, 64),  # N x 512 x 14 x 14
    "4c": (128, 128, 256, 24, 64, 64),  # N x 512 x 14 x 14
    "4d": (112, 144, 288, 32, 64, 64),  # N x 528 x 14 x 14, the second side branch's input
    "4e": (256, 160, 320, 32, 128, 128),  # N x 832 x 14 x 14, then pooled to 7 x 7
    "5a": (256, 160, 320, 32, 128, 128),  # N x 832 x 7 x 7
    "5b": (384, 192, 384, 48, 128, 128),  # N x 1024 x 7 x 7
}
PAPER: dict[str, dict[str, float | str]] = {
    "googlenet": {"multiply_adds": 1.5e9, "source": "Szegedy et al. 2014, section 1"}
}
"""What the paper says, by the names of `lit_cnn.models.describe.TOTALS`."""
_POOLED = ("3b", "4e")
_BRANCHED = ("4a", "4d")
_STEMS = {"paper": 31, "small": 4}  # name -> least image size in pixels
_AUX_DROP_RATE = 0.7


class Inception(nn.Module):
    """Four branches side by side, whose maps are concatenated: 1x1, 3x3, 5x5 and 3x3 max-pooling.

    Szegedy et al. 2014, "Going deeper with convolutions", Figure 2. With `bottleneck` (2b), 1x1 convolutions shrink the
    channels before the 3x3, before the 5x5 and after the pooling. Without (2a, the naive module), both see all channels
    and the pooling branch hands all of them on, so that the module can only grow.

    Args:
        in_channels: Channels of the maps it takes.
        width_1x1: Channels of the first branch.
        reduced_3x3: Channels that the 3x3 convolution sees; unused in the naive module.
        width_3x3: Channels of the second branch.
        reduced_5x5: Channels that the 5x5 convolution sees; unused in the naive module.
        width_5x5: Channels of the third branch.
        projected: Channels of the fourth branch; `in_channels` in the naive module.
        bottleneck: Whether there are the 1x1 convolutions that shrink.
        batch_norm: BatchNorm between each convolution and its ReLU.

    Attributes:
        out_channels: Channels of the maps it returns.
    """

    def __init__(
        self,
        in_channels: int,
        width_1x1: int,
        reduced_3x3: int,
        width_3x3: int,
        reduced_5x5: int,
        width_5x5: int,
        projected: int,
        *,
        bottleneck: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.branch1 = _conv(in_channels, width_1x1, 1, batch_norm)
        self.branch3: nn.Module
        self.branch5: nn.Module
        self.branch_pool: nn.Module
        if bottleneck:
            self.branch3 = nn.Sequential(
                _conv(in_channels, reduced_3x3, 1, batch_norm), _conv(reduced_3x3, width_3x3, 3, batch_norm)
            )
            self.branch5 = nn.Sequential(
                _conv(in_channels, reduced_5x5, 1, batch_norm), _conv(reduced_5x5, width_5x5, 5, batch_norm)
            )
            self.branch_pool = _conv(in_channels, projected, 1, batch_norm)
        else:
            self.branch3 = _conv(in_channels, width_3x3, 3, batch_norm)
            self.branch5 = _conv(in_channels, width_5x5, 5, batch_norm)
            self.branch_pool = nn.Identity()
        self.out_channels = width_1x1 + width_3x3 + width_5x5 + (projected if bottleneck else in_channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns maps `(N, out_channels, H, W)` for maps `(N, in_channels, H, W)`, float."""
        pooled = F.max_pool2d(maps, 3, stride=1, padding=1)
        branches = [self.branch1(maps), self.branch3(maps), self.branch5(maps), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class SideBranch(nn.Module):
    """A small classifier on maps in the middle of the network, for training only (section 5 of the paper).

    5x5 average pooling at stride 3, a 1x1 convolution to 128 channels, 1,024 hidden features, dropout 0.7, logits.

    Args:
        in_channels: Channels of the maps.
        side: Height and width of the maps. Those of less than 5 pixels, too small for the paper's pooling, are averaged
            over as a whole.
        num_classes: Number of logits; 0 leaves the classifier out.
        batch_norm: BatchNorm after the convolution and after the hidden layer.
        width: Factor on the 128 channels and the 1,024 features.
    """

    def __init__(self, in_channels: int, side: int, num_classes: int, batch_norm: bool, width: float) -> None:
        super().__init__()
        channels, hidden = _scaled(128, width), _scaled(1024, width)
        self.window = min(5, side)
        pooled_side = (side - self.window) // 3 + 1
        self.conv = _conv(in_channels, channels, 1, batch_norm)
        self.fc = nn.Linear(channels * pooled_side**2, hidden, bias=not batch_norm)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(_AUX_DROP_RATE)
        self.classifier = _linear(hidden, num_classes)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)` for maps `(N, in_channels, side, side)`, float."""
        maps = F.avg_pool2d(maps, self.window, 3)  # N x 512 x 4 x 4
        maps = self.conv(maps)  # N x 128 x 4 x 4
        features = F.relu(self.norm(self.fc(maps.flatten(1))))  # N x 1024
        return self.classifier(self.dropout(features))  # N x num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype."""
        self.classifier = _linear(self.fc.out_features, num_classes).to(self.fc.weight)


class GoogLeNet(nn.Module):
    """GoogLeNet: 22 layers with weights, nine Inception modules, and no fully connected layer but the last.

    Szegedy et al. 2014, "Going deeper with convolutions", Table 1 and section 5. With three channels and 1,000 classes
    it has 6,998,552 parameters, and 13,378,280 with both side branches.

    What the paper leaves open: the constants of the local response normalisation are those of Caffe's replication of
    the network (5 channels, alpha 1e-4, beta 0.75, k 1), and the initial weights of the convolutions are those of He et
    al. 2015 (`with_relu`). With torch's own, the last maps of different images differ by less than a ten-thousandth of
    their values, and a net of width 1/4 without BatchNorm did not begin to learn scikit-learn's digits in 180 steps.

    Common errors: torchvision's network, and what was copied from it, has a 3x3 convolution in place of the 5x5, and
    BatchNorm, which is younger than the paper. Table 1's numbers of parameters do not all follow from its widths: the
    first convolution has 9,472, not 2.7K. The paper's "12 times fewer parameters" than AlexNet are 8.7 times fewer.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 31 (4 with the small stem). The side branches'
            hidden layers are as wide as this asks, so `forward_with_aux` takes images of this size only.
        stem: `paper`, or `small` for images of about 32 px: one 3x3 convolution at stride 1, which is ours. The maps of
            stages 3, 4 and 5 are then 32, 16 and 8 px large at 32 px, as 28, 14 and 7 px are in the paper at 224 px.
        bottleneck: Whether the Inception modules have 1x1 convolutions that shrink; False makes them naive.
        aux_weight: Weight of each side branch's loss, in [0, 1]; 0 builds none.
        lrn: Whether there is local response normalisation in the stem.
        batch_norm: BatchNorm between each convolution and its ReLU, and no local response normalisation.
        drop_rate: Probability of dropout before the classifier, in [0, 1).
        width: Factor on the number of channels of each layer, above 0.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.
        aux_weights: Weight of the loss of each of `forward_with_aux`'s side branches, two or none.

    Raises:
        ValueError: If an option is out of its range, or the image too small.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        *,
        stem: Literal["paper", "small"] = "paper",
        bottleneck: bool = True,
        aux_weight: float = 0.3,
        lrn: bool = True,
        batch_norm: bool = False,
        drop_rate: float = 0.4,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if stem not in _STEMS:
            raise ValueError(f"stem {stem!r}: give one of {', '.join(_STEMS)}")
        if image_size < _STEMS[stem]:
            raise ValueError(f"GoogLeNet takes images of {_STEMS[stem]} px or more, not {image_size}")
        if not 0 <= aux_weight <= 1:
            raise ValueError(f"aux_weight {aux_weight}: give a weight in [0, 1]")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate {drop_rate}: give a probability in [0, 1)")
        if not width > 0:
            raise ValueError(f"width {width}: give a factor above 0")
        self.num_classes = num_classes
        self.aux_weights = (aux_weight, aux_weight) if aux_weight > 0 else ()
        w64, channels = _scaled(64, width), _scaled(192, width)
        if stem == "paper":
            self.stem = _paper_stem(in_channels, w64, channels, lrn, batch_norm)
        else:
            self.stem = nn.Sequential(_conv(in_channels, channels, 3, batch_norm), _lrn(lrn and not batch_norm))
        self.inceptions = nn.ModuleDict()
        branched = []  # channels of the maps that the side branches see
        for name, widths in _INCEPTIONS.items():
            block = Inception(
                channels, *(_scaled(each, width) for each in widths), bottleneck=bottleneck, batch_norm=batch_norm
            )
            self.inceptions[name] = block
            channels = block.out_channels
            if name in _BRANCHED:
                branched.append(channels)
        self.num_features = self.head_hidden_size = channels
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = _linear(self.head_hidden_size, num_classes)
        # After all else, so that their draws change no weight of the main path.
        side = (image_size + 1) // 16 if stem == "paper" else image_size // 2
        self.side_branches = nn.ModuleList(
            SideBranch(each, side, num_classes, batch_norm, width) for each in branched if self.aux_weights
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, H, W)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_with_aux(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the logits and those of each side branch, for the training step.

        The side branches come last, dropout included, so that under one seed the logits are the same without them.

        Args:
            images: `(N, in_channels, image_size, image_size)`, float.

        Returns:
            Logits `(N, num_classes)` and a list of as many logits for each of `aux_weights`.
        """
        features, branched = self._run(images)
        logits = self.forward_head(features)
        # Not strict: without side branches there are maps and nothing that sees them.
        return logits, [branch(maps) for branch, maps in zip(self.side_branches, branched, strict=False)]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps of the last Inception module, `(N, 1024, 7, 7)` at 224 px, float, at least 0."""
        return self._run(images)[0]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, 1024, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or the mean of each map `(N, 1024)` with `pre_logits`.
        """
        means = self.dropout(features.mean((2, 3)))  # N x 1024
        return means if pre_logits else self.classifier(means)  # N x num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last layer of the main path: `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype.

        Those of the side branches as well, after that of the main path.

        Args:
            num_classes: Number of logits; 0 leaves the classifiers out.
        """
        self.num_classes = num_classes
        self.classifier = _linear(self.head_hidden_size, num_classes).to(next(self.stem.parameters()))
        branch: Any  # a ModuleList does not tell the class
        for branch in self.side_branches:
            branch.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the stem, a group for each Inception module, the classifier.

        The side branches are classifiers too and belong to the last group.

        Args:
            coarse: One group for each of the stages 3, 4 and 5 rather than for each module.
        """
        if coarse:
            return {"stem": r"^stem", "blocks": r"^inceptions\.(\d)"}
        blocks = [(rf"^inceptions\.{name}\.", (number,)) for number, name in enumerate(_INCEPTIONS)]
        return {"stem": r"^stem", "blocks": blocks}

    def _run(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the last maps, and those that the side branches see; the shapes stand at the table of widths."""
        maps = self.stem(images)
        branched = []
        for name, block in self.inceptions.items():
            maps = block(maps)
            if name in _BRANCHED:
                branched.append(maps)
            if name in _POOLED:
                maps = F.max_pool2d(maps, 3, 2, ceil_mode=True)
        return maps, branched


def _paper_stem(in_channels: int, narrow: int, wide: int, lrn: bool, batch_norm: bool) -> nn.Sequential:
    # Figure 3 places the two normalisations; the poolings are 3x3 at stride 2.
    normalize = lrn and not batch_norm
    return nn.Sequential(  # N x 3 x 224 x 224
        _conv(in_channels, narrow, 7, batch_norm, stride=2),  # N x 64 x 112 x 112
        nn.MaxPool2d(3, 2, ceil_mode=True),  # N x 64 x 56 x 56
        _lrn(normalize),
        _conv(narrow, narrow, 1, batch_norm),  # N x 64 x 56 x 56
        _conv(narrow, wide, 3, batch_norm),  # N x 192 x 56 x 56
        _lrn(normalize),
        nn.MaxPool2d(3, 2, ceil_mode=True),  # N x 192 x 28 x 28
    )


def _conv(in_channels: int, out_channels: int, kernel_size: int, batch_norm: bool, stride: int = 1) -> nn.Sequential:
    """Returns a convolution that keeps height and width (but for its stride), and its ReLU."""
    if kernel_size == 1:
        return with_relu(conv1x1(in_channels, out_channels, bias=not batch_norm), batch_norm)
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm)
    return with_relu(conv, batch_norm)


def _lrn(wanted: bool) -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if wanted else nn.Identity()


def _scaled(channels: int, width: float) -> int:
    return max(1, round(width * channels))


def _linear(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features) if out_features > 0 else nn.Identity()
