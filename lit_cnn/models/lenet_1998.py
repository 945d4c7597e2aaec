"""LeNet-5, as it was published in 1998."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

_IMAGE_SIZE = 32  # pixels

PAPER: dict[str, dict[str, float | str]] = {
    "lenet5_1998": {"parameters": 60_000, "source": "LeCun et al. 1998, section II-B"}
}
"""What the paper says, by the names of `lit_cnn.models.describe.TOTALS`."""

C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
"""The paper's Table I: for each of the 16 maps of C3, the maps of S2 that it sees."""

# The ten digits side by side, each 7 wide and 12 high.
_DIGITS = """
..###.. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. .#####.
.#...#. ..##... #.....# #.....# ....##. #...... .#..... ......# #.....# #.....#
#.....# .#.#... ......# ......# ...#.#. #...... #...... ......# #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... .....#. ......# .#...#. #.####. #.####. .....#. #.....# #.....#
#.....# ...#... ....#.. ..####. #....#. ##....# ##....# ....#.. .#####. #....##
#.....# ...#... ...#... ......# ####### ......# #.....# ....#.. #.....# .####.#
#.....# ...#... ..#.... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... .#..... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... #...... ......# .....#. ......# #.....# ..#.... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# #.....# ..#.... #.....# .....#.
..###.. .#####. ####### .#####. .....#. .#####. .#####. ..#.... .#####. .####..
"""


class LeNet5_1998(nn.Module):
    """LeNet-5 with the layers of the paper: trained sub-sampling, sparse C3, squashed units and fixed output codes.

    LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", section II-B and
    appendix A. With one channel it has 60,000 parameters to train: C1 156, S2 12, C3 1,516, S4 32, C5 48,120 and
    F6 10,164. The 840 weights of the output are fixed. Weights and biases are drawn as in appendix A, uniformly from
    -2.4 / fan-in to 2.4 / fan-in.

    Every layer up to F6 ends in the squashing function, the convolutions and the sub-sampling layers too. The logits
    are minus the squared distances to the codes of the digits (equation 7), so that the usual cross-entropy of them is
    the paper's criterion (equation 9) without its constant for rubbish images.

    Deviations from the paper:

    - The bitmaps of the digits are our own, in the manner of the paper's figure 3.
    - The paper's images have -0.1 for white and 1.175 for black; here that is left to the data's normalisation.

    Lecture notes often count wrong: C3 has 1,516 parameters, not the 2,416 of a full connection; S2 and S4 have
    parameters (two for each map) and add up their four inputs, neither average nor maximum; C5 is a convolution, the
    third, though its maps are 1x1; and the output has no weights to train.

    Args:
        num_classes: Number of logits; 0 leaves the classifier out. Ten with `output="rbf"`.
        in_channels: Channels of the images; the paper has one.
        image_size: Height and width of the images in pixels: 32, for which the maps of C5 are 1x1.
        output: The classifier: "rbf" for the paper's fixed codes, "linear" for a layer with weights and biases to
            train, 85 for each class.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`.

    Raises:
        ValueError: If `image_size` is not 32, if there is no such output, or if there are no codes for so many classes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: int = _IMAGE_SIZE,
        *,
        output: Literal["rbf", "linear"] = "rbf",
    ) -> None:
        super().__init__()
        if image_size != _IMAGE_SIZE:
            raise ValueError(f"LeNet-5 of 1998 takes images of 32 px only, not {image_size}")
        if output not in ("rbf", "linear"):
            raise ValueError(f'output {output!r}: give "rbf" or "linear"')
        if output == "rbf" and num_classes not in (0, 10):
            raise ValueError(f'output "rbf" has codes for the ten digits, not for {num_classes}; use output="linear"')
        self.num_classes = num_classes
        self.num_features = 120
        self.head_hidden_size = 84
        self.output = output
        self.c1 = _conv(in_channels, 6)
        self.s2 = _SubSampling(6)
        self.c3 = _SparseConv(C3_TABLE, in_channels=6)
        self.s4 = _SubSampling(16)
        self.c5 = _conv(16, self.num_features)
        self.f6 = _linear(self.num_features, self.head_hidden_size)
        self.classifier = _output(output, self.head_hidden_size, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, 32, 32)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps of C5, `(N, 120, 1, 1)`, float, between -1.7159 and 1.7159."""
        # N x 1 x 32 x 32
        maps = squash(self.c1(images))  # N x 6 x 28 x 28
        maps = squash(self.s2(maps))  # N x 6 x 14 x 14
        maps = squash(self.c3(maps))  # N x 16 x 10 x 10
        maps = squash(self.s4(maps))  # N x 16 x 5 x 5
        return squash(self.c5(maps))  # N x 120 x 1 x 1

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, 120, 1, 1)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, at most 0 if they are distances, or features `(N, 84)` with `pre_logits`.
        """
        features = features.flatten(1)  # N x 120
        features = squash(self.f6(features))  # N x 84
        return features if pre_logits else self.classifier(features)  # N x num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: the fixed codes, `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one on the same device and of the same dtype.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out. For other numbers than ten there are no codes,
                so the new layer is a linear one with fresh weights.
        """
        self.num_classes = num_classes
        output = self.output if num_classes == 10 else "linear"
        self.classifier = _output(output, self.head_hidden_size, num_classes).to(self.f6.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: C1 with S2, C3 with S4, C5, F6, and the classifier if it trains.

        Args:
            coarse: Part of timm's contract; the groups are the same, as there is nothing within a layer to split.
        """
        return {"stem": r"^(?:c1|s2)\.", "blocks": [(r"^(?:c3|s4)\.", (0,)), (r"^c5\.", (1,)), (r"^f6\.", (2,))]}


def squash(sums: torch.Tensor) -> torch.Tensor:
    """Returns the paper's scaled hyperbolic tangent (equation 6, appendix A): 1 at 1, -1 at -1, 1.7159 at most.

    Args:
        sums: Weighted sums of any shape, float.
    """
    return 1.7159 * torch.tanh(2 / 3 * sums)


def digit_codes() -> torch.Tensor:
    """Returns the target of F6 for each digit, `(10, 84)`, float: its 7x12 bitmap row by row, ink 1 and paper -1."""
    rows = [line.split() for line in _DIGITS.split("\n") if line]  # 12 rows of 10 strings of 7
    pictures = ["".join(rows[y][digit] for y in range(12)) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])


class _SubSampling(nn.Module):
    """S2 and S4: the sum of four neighbours, times a trained coefficient, plus a trained bias, for each map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        _draw(self.parameters(), fan_in=4)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        sums = 4 * F.avg_pool2d(maps, 2)  # N x C x H/2 x W/2
        return self.coefficient.view(-1, 1, 1) * sums + self.bias.view(-1, 1, 1)


class _SparseConv(nn.Module):
    """C3: 5x5 convolution in which each output map sees only those input maps that the table lists for it.

    Its weights are those of the table's connections, `(60, 5, 5)`, and no others. They are laid out among zeros for one
    ordinary convolution: it multiplies by 96 kernels instead of 60, and is still faster than a grouped one.
    """

    present: torch.Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...], in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        present = [out * in_channels + source for out, sources in enumerate(table) for source in sources]
        self.register_buffer("present", torch.tensor(present), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(present), 5, 5))
        self.bias = nn.Parameter(torch.empty(len(table)))
        fan_ins = [25 * len(sources) for sources in table]
        weights = self.weight.detach().split([len(sources) for sources in table])
        for fan_in, weight, bias in zip(fan_ins, weights, self.bias.detach(), strict=True):
            _draw((weight, bias), fan_in)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        weight = self.weight.new_zeros(len(self.bias) * self.in_channels, 5, 5)
        weight = weight.index_copy(0, self.present, self.weight)  # 96 x 5 x 5
        return F.conv2d(maps, weight.view(-1, self.in_channels, 5, 5), self.bias)


class _RadialBasis(nn.Module):
    """The output: minus the squared Euclidean distance of F6 to each digit's code."""

    codes: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", digit_codes())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return -(features.unsqueeze(1) - self.codes).square().sum(2)  # N x 10 x 84 -> N x 10


def _output(output: str, in_features: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    return _RadialBasis() if output == "rbf" else _linear(in_features, num_classes)


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 5)
    _draw(conv.parameters(), fan_in=25 * in_channels)
    return conv


def _linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    _draw(linear.parameters(), fan_in=in_features)
    return linear


def _draw(parameters: Iterable[torch.Tensor], fan_in: int) -> None:
    """Draws the parameters of units that have `fan_in` inputs each, as in appendix A."""
    for parameter in parameters:
        nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)
