"""LeNet-5, as it is built today."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_PAPER_SIZE = 32  # the paper's input: a 28 px digit in a 32 px frame

PAPER: dict[str, dict[str, float | str]] = {
    "lenet5": {"parameters": 60_000, "source": "LeCun et al. 1998, section II-B"}
}
"""What the paper says, by the names of `lit_cnn.models.describe.TOTALS`."""


class LeNet5(nn.Module):
    """LeNet-5 in its modern reading: two 5x5 convolutions and three fully connected layers.

    LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", section II-B.
    With one channel and ten classes it has 61,706 parameters, at 28 px as at 32 px.

    Deviations from the paper:

    - ReLU instead of the scaled tanh.
    - 2x2 max-pooling without weights instead of S2's and S4's trained sub-sampling (mean, gain, bias, sigmoid).
    - The second convolution (C3) sees all six maps; in the paper each of its 16 maps sees three, four or all six.
    - A linear output that ends in logits instead of Euclidean radial basis units on fixed 7x12 codes.
    - Below 32 px the first convolution is padded by 2, which stands for the paper's frame around the digit.

    Lecture notes often count wrong: there are two convolutions, not three or four. The paper's C5 has 120 filters of
    5x5 on maps of 5x5, so at this size it is a fully connected layer, and is one here at every size.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 12. The first fully connected layer is as wide as
            this asks, so a network takes images of this size only.
        batch_norm: Normalise over the batch after every convolution and hidden fully connected layer, before the ReLU
            (Ioffe and Szegedy 2015, "Batch normalization", section 3.2). Those layers then have no bias of their own:
            61,932 parameters. In train mode such a network needs two images or more.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.

    Raises:
        ValueError: If `image_size` leaves nothing after the second pooling.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 1, image_size: int = 28, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 16
        self.head_hidden_size = 84
        padding = 2 if image_size < _PAPER_SIZE else 0
        side = _map_side(image_size, padding)
        if side < 1:
            raise ValueError(f"LeNet-5 takes images of 12 px or more, not {image_size}")
        bias = not batch_norm  # the norm has its own
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=padding, bias=bias)
        self.conv1_norm = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(6, self.num_features, 5, bias=bias)
        self.conv2_norm = nn.BatchNorm2d(self.num_features) if batch_norm else nn.Identity()
        self.fc1 = nn.Linear(self.num_features * side * side, 120, bias=bias)
        self.fc1_norm = nn.BatchNorm1d(120) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(120, self.head_hidden_size, bias=bias)
        self.fc2_norm = nn.BatchNorm1d(self.head_hidden_size) if batch_norm else nn.Identity()
        self.classifier = _linear(self.head_hidden_size, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, image_size, image_size)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps before the first fully connected layer, `(N, 16, 5, 5)` at 28 and 32 px, float."""
        # N x 1 x 28 x 28 (or 32 x 32)
        maps = F.relu(self.conv1_norm(self.conv1(images)))  # N x 6 x 28 x 28
        maps = F.max_pool2d(maps, 2)  # N x 6 x 14 x 14
        maps = F.relu(self.conv2_norm(self.conv2(maps)))  # N x 16 x 10 x 10
        return F.max_pool2d(maps, 2)  # N x 16 x 5 x 5

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, 16, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or features `(N, 84)`, at least 0, with `pre_logits`.
        """
        features = features.flatten(1)  # N x 400
        features = F.relu(self.fc1_norm(self.fc1(features)))  # N x 120
        features = F.relu(self.fc2_norm(self.fc2(features)))  # N x 84
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
        return {"stem": r"^conv1", "blocks": [(r"^conv2", (0,)), (r"^fc1", (1,)), (r"^fc2", (2,))]}


def _map_side(image_size: int, padding: int) -> int:
    """Returns the height and width of the maps after the second pooling; below 1 for too small an image."""
    side = (image_size + 2 * padding - 4) // 2
    return (side - 4) // 2


def _linear(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features) if out_features > 0 else nn.Identity()
