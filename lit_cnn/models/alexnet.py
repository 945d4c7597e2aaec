"""AlexNet, on one device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LEAST_SIZE = 67  # pixels; the first convolution's 15 x 15 maps are the least that three poolings leave anything of

PAPER: dict[str, dict[str, float | str]] = {
    "alexnet": {"parameters": 60e6, "source": "Krizhevsky et al. 2012, abstract"}
}
"""What the paper says, by the names of `lit_cnn.models.describe.TOTALS`."""


class AlexNet(nn.Module):
    """AlexNet: five convolutions, three fully connected layers.

    Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks", sections
    3.1 to 3.5, 4.2 and 5. With 1,000 classes and three channels it has 60,965,224 parameters at 227 px.

    The paper's two devices are two groups of a grouped convolution: the second, fourth and fifth convolution see the
    maps of their own half only. Weights are drawn from a normal distribution with standard deviation 0.01 (section 5);
    the biases of the second, fourth and fifth convolution and of the hidden fully connected layers start at 1, all
    others at 0. Where a layer has fewer or more inputs than the paper's, at another width, size or number of channels,
    the standard deviation follows the square root of their ratio, so that the sums spread as in the paper: with 0.01
    throughout, nets of width 1/8 on images of 67 px took far longer to begin to learn.

    Deviations from the paper:

    - The paper states 224 px, from which its 55 x 55 maps do not follow: (227 - 11) / 4 + 1 = 55. At 224 px they are
      54 x 54 here, and the last ones 5 x 5 instead of 6 x 6.
    - Response normalisation adds up neighbours across the border between the two halves; the paper leaves open whether
      it does.
    - Dropout scales up in training what it keeps, instead of scaling down in the evaluation.

    Lecture notes often count wrong: there are five convolutions, not eight (eight layers have weights); without the
    groups there would be 62,378,344 parameters; and torchvision's `alexnet` is the later one-device variant with 64,
    192, 384, 256 and 256 channels, without groups and response normalisation (61,100,840 parameters).

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 67. The first fully connected layer is as wide as
            this asks, so a network takes images of this size only, or of those that give equally large last maps.
        width: Factor of the number of channels and hidden features, above 0. The result is rounded to an even number,
            at least 2, for the two groups.
        lrn: Local response normalisation after the first two convolutions (section 3.3).
        batch_norm: Normalise over the batch after every convolution and hidden fully connected layer, before the ReLU
            (Ioffe and Szegedy 2015, "Batch normalization", section 3.2). Those layers then have no bias of their own.
            With 1,000 classes: 60,974,792 parameters. In train mode such a network needs two images or more.
        drop_rate: Probability with which dropout sets an output of the hidden fully connected layers to 0, from 0 to
            below 1.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.

    Raises:
        ValueError: If `image_size` leaves nothing after the third pooling, or `width` or `drop_rate` is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 227,
        *,
        width: float = 1.0,
        lrn: bool = True,
        batch_norm: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size < _LEAST_SIZE:
            raise ValueError(f"AlexNet takes images of {_LEAST_SIZE} px or more, not {image_size}")
        if not width > 0:
            raise ValueError(f"width {width}: give a number above 0")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate {drop_rate}: give a number from 0 to below 1")
        c1, c2, c3, c4, c5, hidden = (_even(width * channels) for channels in (96, 256, 384, 384, 256, 4096))
        bias = not batch_norm  # the norm has its own
        self.num_classes = num_classes
        self.num_features = c5
        self.head_hidden_size = hidden
        self.conv1 = nn.Conv2d(in_channels, c1, 11, stride=4, bias=bias)
        self.conv1_norm = nn.BatchNorm2d(c1) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=2, bias=bias)
        self.conv2_norm = nn.BatchNorm2d(c2) if batch_norm else nn.Identity()
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1, bias=bias)
        self.conv3_norm = nn.BatchNorm2d(c3) if batch_norm else nn.Identity()
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=2, bias=bias)
        self.conv4_norm = nn.BatchNorm2d(c4) if batch_norm else nn.Identity()
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=2, bias=bias)
        self.conv5_norm = nn.BatchNorm2d(c5) if batch_norm else nn.Identity()
        # torch divides alpha by the number of maps that it adds up, the paper does not.
        self.lrn = nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0) if lrn else nn.Identity()
        self.pool = nn.MaxPool2d(3, stride=2)
        self.fc1 = nn.Linear(c5 * _map_side(image_size) ** 2, hidden, bias=bias)
        self.fc1_norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, hidden, bias=bias)
        self.fc2_norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = _linear(hidden, num_classes)
        _draw(self.conv1, papers_inputs=3 * 11 * 11, bias=0.0)
        _draw(self.conv2, papers_inputs=48 * 5 * 5, bias=1.0)
        _draw(self.conv3, papers_inputs=256 * 3 * 3, bias=0.0)
        _draw(self.conv4, papers_inputs=192 * 3 * 3, bias=1.0)
        _draw(self.conv5, papers_inputs=192 * 3 * 3, bias=1.0)
        _draw(self.fc1, papers_inputs=256 * 6 * 6, bias=1.0)
        _draw(self.fc2, papers_inputs=4096, bias=1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, image_size, image_size)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps before the first fully connected layer, `(N, 256, 6, 6)` at 227 px, float."""
        # N x 3 x 227 x 227
        maps = F.relu(self.conv1_norm(self.conv1(images)))  # N x 96 x 55 x 55
        maps = self.pool(self.lrn(maps))  # N x 96 x 27 x 27
        maps = F.relu(self.conv2_norm(self.conv2(maps)))  # N x 256 x 27 x 27
        maps = self.pool(self.lrn(maps))  # N x 256 x 13 x 13
        maps = F.relu(self.conv3_norm(self.conv3(maps)))  # N x 384 x 13 x 13
        maps = F.relu(self.conv4_norm(self.conv4(maps)))  # N x 384 x 13 x 13
        maps = F.relu(self.conv5_norm(self.conv5(maps)))  # N x 256 x 13 x 13
        return self.pool(maps)  # N x 256 x 6 x 6

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, 256, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or features `(N, 4096)`, at least 0, with `pre_logits`.
        """
        features = features.flatten(1)  # N x 9216
        features = self.dropout(F.relu(self.fc1_norm(self.fc1(features))))  # N x 4096
        features = self.dropout(F.relu(self.fc2_norm(self.fc2(features))))  # N x 4096
        return features if pre_logits else self.classifier(features)  # N x num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out.
        """
        self.num_classes = num_classes
        self.classifier = _linear(self.head_hidden_size, num_classes).to(self.fc2.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the stem, then one group for each layer up to the classifier.

        Args:
            coarse: Part of timm's contract; the groups are the same, as there is nothing within a layer to split.
        """
        hidden = ("conv2", "conv3", "conv4", "conv5", "fc1", "fc2")
        return {"stem": r"^conv1", "blocks": [(rf"^{layer}", (place,)) for place, layer in enumerate(hidden)]}


def _map_side(image_size: int) -> int:
    """Returns the height and width of the maps after the third pooling."""
    side = (image_size - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def _even(number: float) -> int:
    return max(2, 2 * round(number / 2))


def _linear(in_features: int, out_features: int) -> nn.Module:
    if out_features == 0:
        return nn.Identity()
    layer = nn.Linear(in_features, out_features)
    _draw(layer, papers_inputs=4096, bias=0.0)
    return layer


def _draw(layer: nn.Conv2d | nn.Linear, papers_inputs: int, bias: float) -> None:
    """Gives a layer the paper's initial weights, and a constant bias if it has one.

    Args:
        layer: Its weight is `(out, in, ...)`; each output has as many inputs as the other axes have elements.
        papers_inputs: The number of inputs of an output in the paper.
        bias: The initial bias.
    """
    inputs = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=0.01 * (papers_inputs / inputs) ** 0.5)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
