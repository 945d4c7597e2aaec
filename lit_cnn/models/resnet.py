"""Plain and residual networks, which differ in nothing but the shortcuts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

Form = Literal["cifar", "imagenet"]
Shortcut = Literal["zero_pad", "projection", "projection_all"]
StrideIn = Literal["1x1", "3x3"]
_MakeBlock = Callable[..., "BasicBlock | Bottleneck"]

_IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_LEAST_BOTTLENECK_DEPTH = 50  # in the ImageNet form

_PARAMETERS = {20: 0.27e6, 32: 0.46e6, 44: 0.66e6, 56: 0.85e6, 110: 1.7e6}  # the paper's Table 6
_MULTIPLY_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}  # the paper's Table 1, there "FLOPs"

PAPER: dict[str, dict[str, float | str]] = {
    # Table 6 has no plain networks; section 4.2 says that they have just as many.
    **{f"plain{n}": {"parameters": p, "source": "He et al. 2015, Table 6"} for n, p in _PARAMETERS.items()},
    **{f"resnet{n}": {"parameters": p, "source": "He et al. 2015, Table 6"} for n, p in _PARAMETERS.items()},
    **{f"plain{n}": {"multiply_adds": _MULTIPLY_ADDS[n], "source": "He et al. 2015, Table 1"} for n in (18, 34)},
    **{f"residual{n}": {"multiply_adds": m, "source": "He et al. 2015, Table 1"} for n, m in _MULTIPLY_ADDS.items()},
}
"""What the paper says of the networks that have a name, by the names of `lit_cnn.models.describe.TOTALS`."""


class ResNet(nn.Module):
    """Plain and residual networks: a stem, stages of blocks that halve and widen the maps, average pooling, logits.

    He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition", sections 3.3, 3.4, 4.1 and 4.2. With
    `residual=False` it is the plain network that the paper compares with: the same layers without the shortcuts.

    - The CIFAR form (section 4.2) has 6n + 2 layers: a 3x3 convolution, then n blocks each at 32, 16 and 8 px. With ten
      classes and `shortcut="zero_pad"` 20, 32, 44, 56 and 110 layers have 269,722, 464,154, 658,586, 853,018 and
      1,727,962 parameters, plain ones just as many.
    - The ImageNet form (Table 1) has a 7x7 convolution, max-pooling and stages at 56, 28, 14 and 7 px. With 1,000
      classes and `shortcut="projection"` 18, 34, 50, 101 and 152 layers have 11,689,512, 21,797,672, 25,557,032,
      44,549,160 and 60,192,808 parameters. 18 and 34 layers are made of `BasicBlock`, more of `Bottleneck`.

    The layers have the names of timm's, whose weights fit with `shortcut="projection"` and `stride_in="3x3"`.
    Convolutions are drawn as the paper cites (He et al. 2015, "Delving deep into rectifiers", section 2.2, equation
    14): normal, with the standard deviation sqrt(2 / (outputs * kernel area)), biases 0. No block starts as the
    identity, which is a later trick.

    Deviations from the paper:

    - The paper does not say on which side `zero_pad` adds channels: here after the others.
    - The last layer has torch's initial weights.

    Lecture notes often count wrong: the depth is that of the main path, so 20 layers are 19 convolutions and one fully
    connected layer, and projections do not count; 272,474 parameters for 20 layers are those with projections, not the
    paper's; a `resnet18` trained on CIFAR is the ImageNet form, 40 times as large as the paper's 20 layers; and
    ResNet-50's 4.1 billion multiply-adds are those of `stride_in="3x3"`, the paper's are 3.8 billion.

    Args:
        form: The stem and the stages.
        depth: Number of layers: 8, 14, 20 and so on in the CIFAR form; 18, 34, 50, 101 or 152 in the ImageNet form.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, at least 3 in the CIFAR form and 17 in the ImageNet form,
            so that the last stage has something to halve. The same network takes images of other sizes too.
        residual: Put a shortcut around each block.
        shortcut: The paper's options (section 4.1). Where a block changes the shape of its input, the shortcut takes
            every second pixel and adds channels of zeros ("zero_pad", A), or is a 1x1 convolution ("projection", B).
            Elsewhere it is the identity, or a 1x1 convolution too ("projection_all", C). Nothing to a plain network.
        stride_in: Which convolution of a bottleneck block halves the maps: the first 1x1, as in the paper, or the 3x3,
            as in timm. Nothing to a network of basic blocks.
        batch_norm: Normalise over the batch after every convolution, those of shortcuts included. Without, which is not
            the paper's, convolutions have biases instead.
        width: Factor of the number of channels, above 0. The result is rounded, to at least 1.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Features of `forward_head` with `pre_logits=True`, the same number.

    Raises:
        ValueError: If an option is none of its choices or out of its range, or `image_size` is too small.
    """

    def __init__(
        self,
        form: Form,
        depth: int,
        /,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        *,
        residual: bool = True,
        shortcut: Shortcut = "projection",
        stride_in: StrideIn = "1x1",
        batch_norm: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        _require_choice("form", form, get_args(Form))
        _require_choice("shortcut", shortcut, get_args(Shortcut))
        _require_choice("stride_in", stride_in, get_args(StrideIn))
        if not width > 0:
            raise ValueError(f"width {width}: give a number above 0")
        is_cifar = form == "cifar"
        least_size = 3 if is_cifar else 17
        if image_size < least_size:
            raise ValueError(f"image_size {image_size}: the {form} form takes {least_size} px or more")
        num_blocks = _cifar_blocks(depth) if is_cifar else _imagenet_blocks(depth)
        channels = [max(1, round(width * c)) for c in ((16, 32, 64) if is_cifar else (64, 128, 256, 512))]
        around = shortcut if residual else None
        make_block: _MakeBlock = partial(BasicBlock, shortcut=around, batch_norm=batch_norm)
        if not is_cifar and depth >= _LEAST_BOTTLENECK_DEPTH:
            make_block = partial(Bottleneck, stride_in=stride_in, shortcut=around, batch_norm=batch_norm)
        stages, last = _stages(make_block, num_blocks, channels)

        self.num_classes = num_classes
        self.conv1 = _conv(in_channels, channels[0], 3 if is_cifar else 7, 1 if is_cifar else 2, batch_norm)
        self.bn1 = _norm(channels[0], batch_norm)
        self.maxpool = nn.Identity() if is_cifar else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (*stages, nn.Identity())[:4]
        self.num_features = self.head_hidden_size = last
        self.fc = _linear(last, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, H, W)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the maps of the last stage, float, at least 0.

        They are `(N, 64, 8, 8)` at 32 px in the CIFAR form. In the ImageNet form they are `(N, 512, 7, 7)` at 224 px,
        `(N, 2048, 7, 7)` from 50 layers on.
        """
        # CIFAR form N x 3 x 32 x 32; ImageNet form N x 3 x 224 x 224, its channels from 50 layers on in brackets
        maps = F.relu(self.bn1(self.conv1(images)))  # N x 16 x 32 x 32; N x 64 x 112 x 112
        maps = self.maxpool(maps)  # N x 16 x 32 x 32; N x 64 x 56 x 56
        maps = self.layer1(maps)  # N x 16 x 32 x 32; N x 64 (256) x 56 x 56
        maps = self.layer2(maps)  # N x 32 x 16 x 16; N x 128 (512) x 28 x 28
        maps = self.layer3(maps)  # N x 64 x 8 x 8; N x 256 (1024) x 14 x 14
        return self.layer4(maps)  # N x 64 x 8 x 8; N x 512 (2048) x 7 x 7

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the maps of `forward_features`.

        Args:
            features: Maps `(N, num_features, H, W)`, float.
            pre_logits: Stop before the classifier and return its input.

        Returns:
            Logits `(N, num_classes)`, or features `(N, num_features)` with `pre_logits`.
        """
        features = features.mean((2, 3))  # N x 64; N x 512 (2048)
        return features if pre_logits else self.fc(features)  # N x num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one with fresh weights, on the same device and of the same dtype.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out.
        """
        self.num_classes = num_classes
        self.fc = _linear(self.num_features, num_classes).to(self.conv1.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the stem, then one group for each block, or for each stage.

        Args:
            coarse: Group by stages instead of by blocks.
        """
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them (figure 2), or none in a plain network.

    The ReLU stands after the addition. So with all weights 0, the block is the identity for maps that are nowhere below
    0, as behind another block, if its shortcut is the identity; weight decay pulls it there. Under batch normalisation
    the decay must reach the norm's scale and shift: the scale of a normalised convolution's weights changes nothing.

    Args:
        in_channels: Channels of the input.
        channels: Channels of both convolutions.
        stride: Of the first convolution.
        shortcut: As in `ResNet`; None for a plain network.
        batch_norm: As in `ResNet`.

    Attributes:
        out_channels: Channels of the output.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        shortcut: Shortcut | None = "zero_pad",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv1 = _conv(in_channels, channels, 3, stride, batch_norm)
        self.bn1 = _norm(channels, batch_norm)
        self.conv2 = _conv(channels, channels, 3, 1, batch_norm)
        self.bn2 = _norm(channels, batch_norm)
        self.downsample = _shortcut(shortcut, in_channels, channels, stride, batch_norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns maps `(N, out_channels, H / stride, W / stride)`, at least 0, for `(N, in_channels, H, W)`, float."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        inner = self.bn2(self.conv2(inner))
        return F.relu(inner if self.downsample is None else inner + self.downsample(maps))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1 that shrink and restore the channels, with a shortcut around (figure 5).

    What `BasicBlock` says of the identity holds here too.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the first two convolutions; the third has four times as many.
        stride: Of the convolution that `stride_in` names.
        shortcut: As in `ResNet`; None for a plain network.
        stride_in: As in `ResNet`.
        batch_norm: As in `ResNet`.

    Attributes:
        out_channels: Channels of the output.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        shortcut: Shortcut | None = "projection",
        stride_in: StrideIn = "1x1",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = 4 * channels
        self.conv1 = _conv(in_channels, channels, 1, stride if stride_in == "1x1" else 1, batch_norm)
        self.bn1 = _norm(channels, batch_norm)
        self.conv2 = _conv(channels, channels, 3, stride if stride_in == "3x3" else 1, batch_norm)
        self.bn2 = _norm(channels, batch_norm)
        self.conv3 = _conv(channels, self.out_channels, 1, 1, batch_norm)
        self.bn3 = _norm(self.out_channels, batch_norm)
        self.downsample = _shortcut(shortcut, in_channels, self.out_channels, stride, batch_norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns maps `(N, out_channels, H / stride, W / stride)`, at least 0, for `(N, in_channels, H, W)`, float."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return F.relu(inner if self.downsample is None else inner + self.downsample(maps))


class ZeroPad(nn.Module):
    """The paper's shortcut A where the shape changes: every `stride`-th pixel, and further channels of zeros.

    Args:
        num_more: How many channels to add after those of the input.
        stride: Distance of the pixels to keep, in both directions, from the first on.
    """

    def __init__(self, num_more: int, stride: int) -> None:
        super().__init__()
        self.num_more = num_more
        self.stride = stride

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns maps `(N, C + num_more, H / stride, W / stride)` for `(N, C, H, W)`, both sides rounded up."""
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_more))


def _cifar_blocks(depth: int) -> tuple[int, ...]:
    """Returns the number of blocks of each stage."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth {depth}: the cifar form has 6n + 2 layers, so give 8, 14, 20 and so on")
    return (depth // 6,) * 3


def _imagenet_blocks(depth: int) -> tuple[int, ...]:
    """Returns the number of blocks of each stage."""
    _require_choice("depth", depth, tuple(_IMAGENET_BLOCKS))
    return _IMAGENET_BLOCKS[depth]


def _stages(
    make_block: _MakeBlock, num_blocks: Sequence[int], channels: Sequence[int]
) -> tuple[list[nn.Sequential], int]:
    """Returns the stages, each with its number of blocks and of inner channels, and the channels of the last output."""
    stages: list[nn.Sequential] = []
    in_channels = channels[0]
    for count, inner in zip(num_blocks, channels, strict=True):
        blocks: list[BasicBlock | Bottleneck] = []
        for _ in range(count):
            blocks.append(make_block(in_channels, inner, stride=2 if stages and not blocks else 1))
            in_channels = blocks[-1].out_channels
        stages.append(nn.Sequential(*blocks))
    return stages, in_channels


def _require_choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option} {value!r}: give one of {', '.join(map(repr, choices))}")


def _shortcut(
    kind: Shortcut | None, in_channels: int, out_channels: int, stride: int, batch_norm: bool
) -> nn.Module | None:
    changes_shape = stride > 1 or in_channels != out_channels
    if kind is None:
        return None
    if kind == "projection_all" or (kind == "projection" and changes_shape):
        return nn.Sequential(_conv(in_channels, out_channels, 1, stride, batch_norm), _norm(out_channels, batch_norm))
    return ZeroPad(out_channels - in_channels, stride) if changes_shape else nn.Identity()


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, batch_norm: bool) -> nn.Conv2d:
    """Returns a convolution that keeps the size of maps at stride 1, without a bias if a norm with its own follows."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def _linear(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features) if out_features > 0 else nn.Identity()


# Form and depth are bound by position, so what a name stands for is not one of its options.
_cifar = partial(ResNet, "cifar", image_size=32, shortcut="zero_pad")
_imagenet = partial(ResNet, "imagenet", image_size=224, shortcut="projection")

plain20, plain32, plain44, plain56, plain110 = (partial(_cifar, depth, residual=False) for depth in _PARAMETERS)
resnet20, resnet32, resnet44, resnet56, resnet110 = (partial(_cifar, depth) for depth in _PARAMETERS)
plain18, plain34 = (partial(_imagenet, depth, residual=False) for depth in (18, 34))
residual18, residual34, residual50, residual101, residual152 = (partial(_imagenet, depth) for depth in _MULTIPLY_ADDS)
