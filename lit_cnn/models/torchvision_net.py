"""Torchvision's networks by name, with timm's contract around them."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision.models.vision_transformer import Encoder, VisionTransformer, interpolate_embeddings

from lit_cnn.core.errors import UsageError
from lit_cnn.models.hub import loading_weights

_AUX = r"aux\d|AuxLogits"  # names of side branches
_AUX_WEIGHT = 0.3
_CLASSES_OF_WEIGHTS = 1000  # torchvision's own are ImageNet's
# Their weights come from TensorFlow, where pixels lay in [-1, 1]; torchvision converts from ImageNet's mean and std.
_TRANSFORMED = ("googlenet", "inception_v3")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchvisionNet(nn.Module):
    """A classifier of torchvision's, cut before its last linear layer.

    Deviations of torchvision's networks from their papers are torchvision's: its `googlenet` has 3x3 convolutions in
    place of the paper's 5x5, and BatchNorm (ours, `lit/googlenet`, has neither unless asked).

    Args:
        name: torchvision's name, `googlenet`.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_channels: Channels of the images. With other than three, the first convolution is a new one.
        **options: Further arguments of torchvision's builder.

    Attributes:
        num_features: Features of `forward_features`.
        head_hidden_size: The same number.
        aux_weights: Weight of each side branch's loss, 0.3 (Szegedy et al. 2014, section 5); empty without any.

    Raises:
        UsageError: If the network does not end in a linear layer: SqueezeNet ends in a convolution and a ReLU.
    """

    input_scale: torch.Tensor
    input_shift: torch.Tensor

    def __init__(self, name: str, num_classes: int, in_channels: int = 3, **options: Any) -> None:
        super().__init__()
        self._name = name
        self.num_classes = num_classes
        self.backbone = _build(name, num_classes or _CLASSES_OF_WEIGHTS, options)
        self._place = [path for path, module in self.backbone.named_modules() if [*module.parameters(recurse=False)]][
            -1
        ]
        last = self.backbone.get_submodule(self._place)
        if not isinstance(last, nn.Linear):
            raise UsageError("arch", f"torchvision/{name}", f"ends in a {type(last).__name__}, not in a linear layer")
        self.backbone.set_submodule(self._place, nn.Identity())
        self.classifier: nn.Module = last if num_classes else nn.Identity()
        self.num_features = self.head_hidden_size = last.in_features
        self._aux_names = [path for path, _ in self.backbone.named_children() if re.match(_AUX, path)]
        self.aux_weights = (_AUX_WEIGHT,) * len(self._aux_names)
        if in_channels != 3:
            self._take_channels(in_channels)
        # Buffers, so that a checkpoint remembers what its weights expect.
        self.register_buffer("input_scale", torch.ones(1, in_channels, 1, 1))
        self.register_buffer("input_shift", torch.zeros(1, in_channels, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, H, W)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_with_aux(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns logits `(N, num_classes)`, and those of each side branch; these in train mode only."""
        features, *aux_logits = self._outputs(images)
        # Torchvision gives the branch that is nearest to the classifier first.
        return self.forward_head(features), [logits for logits in reversed(aux_logits) if logits is not None]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the features that the classifier sees, `(N, num_features)`, float."""
        return self._outputs(images)[0]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits `(N, num_classes)` for features `(N, num_features)`; the features with `pre_logits`."""
        return features if pre_logits else self.classifier(features)

    def get_classifier(self) -> nn.Module:
        """Returns the last layer: `nn.Linear`, or `nn.Identity` if `num_classes` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer, and those of the side branches, by new ones with fresh weights.

        Args:
            num_classes: Number of logits; 0 leaves the classifier out, and the side branches as they are.
        """
        like = next(self.backbone.parameters())
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes).to(like) if num_classes else nn.Identity()
        for branch in self._aux_names if num_classes else ():
            last: Any = self.backbone.get_submodule(_last_linear(self.backbone, branch))
            new = nn.Linear(last.in_features, num_classes).to(like)
            self.backbone.set_submodule(_last_linear(self.backbone, branch), new)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns of parameter names: the stem, a group for each part of the backbone, the classifier.

        Parts are the backbone's children in their order, a container of stages (`features`) split into its own, a
        vision transformer's encoder into its blocks; a BatchNorm goes with what is before it. The side branches are
        classifiers and belong to the last group.

        Args:
            coarse: Part of timm's contract; the groups are the same.
        """
        groups: list[list[str]] = []
        for part in _parts(self.backbone):
            if part in self._aux_names:
                continue
            is_norm = isinstance(self.backbone.get_submodule(part), nn.BatchNorm2d) or part == "encoder.ln"
            if not (groups and is_norm):
                groups.append([])
            groups[-1].append(re.escape(f"backbone.{part}."))
        # A token and positions belong to what looks at the pixels.
        groups[0] += [re.escape(f"backbone.{name}") for name in _positions(self.backbone)]
        stem, *blocks = (f"^(?:{'|'.join(parts)})" for parts in groups)
        return {"stem": stem, "blocks": [(pattern, (number,)) for number, pattern in enumerate(blocks)]}

    def _outputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        try:
            return _outputs(self.backbone(images * self.input_scale + self.input_shift))
        except RuntimeError as error:
            # Evaluation, in which the network was tried, has no side branches.
            if not (self.training and self.aux_weights and re.search("Kernel size|Output size", str(error))):
                raise
            reason = f"too small for the side branches of torchvision/{self._name}"
            remedy = f"give {native_size(self._name)}, or `arch_options={{aux_logits: false}}`"
            raise UsageError("image_size", images.shape[-1], reason, remedy) from error

    def _expect_tensorflow_pixels(self) -> None:
        """Converts images normalised for ImageNet to pixels in [-1, 1], as the weights expect."""
        scale, shift = torch.tensor(_IMAGENET_STD) / 0.5, (torch.tensor(_IMAGENET_MEAN) - 0.5) / 0.5
        in_channels = self.input_scale.shape[1]
        for buffer, values in ((self.input_scale, scale), (self.input_shift, shift)):
            buffer.copy_((values if in_channels == 3 else values.mean()).reshape(1, -1, 1, 1))

    def load_torchvision(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Loads torchvision's weights, under its names, all of them and no others.

        The first convolution's are summed or repeated for other numbers of channels, as timm does; those of a
        classifier for another number of classes are left out.

        Raises:
            ValueError: If a name or a shape does not fit; the message names the first.
        """
        from timm.models import adapt_input_conv

        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("input_")}
        given = {self._own_name(name): tensor for name, tensor in state_dict.items()}
        first = f"{_first_convolution(self.backbone)}.weight"
        if (weight := given.get(f"backbone.{first}")) is not None:
            given[f"backbone.{first}"] = adapt_input_conv(own[f"backbone.{first}"].shape[1], weight)
        given = self.resample(given)
        heads = ("classifier.", *(f"backbone.{_last_linear(self.backbone, branch)}." for branch in self._aux_names))
        for name in [name for name in given if name.startswith(heads)]:
            if name in own and given[name].shape[0] != own[name].shape[0]:
                given[name] = own[name]
        # Side branches that were left out by an option.
        given = {
            name: tensor
            for name, tensor in given.items()
            if name in own or not re.match(_AUX, name.removeprefix("backbone."))
        }
        for name in sorted(given.keys() ^ own.keys()):
            raise ValueError(f"{name} is in {'the weights' if name in given else 'the network'} only")
        for name, tensor in own.items():
            if tensor.shape != given[name].shape:
                raise ValueError(f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}")
        self.load_state_dict(given, strict=False)
        if self._name in _TRANSFORMED:
            self._expect_tensorflow_pixels()

    def resample(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns weights by our names, a vision transformer's positions resampled to its number of patches.

        By torchvision's own function, `interpolate_embeddings`.
        """
        given, name = dict(weights), "encoder.pos_embedding"
        if isinstance(net := self.backbone, VisionTransformer) and f"backbone.{name}" in given:
            state = OrderedDict({name: given[f"backbone.{name}"]})
            given[f"backbone.{name}"] = interpolate_embeddings(net.image_size, net.patch_size, state)[name]
        return given

    def _own_name(self, name: str) -> str:
        return re.sub(rf"^backbone\.{re.escape(self._place)}\.", "classifier.", f"backbone.{name}")

    def _take_channels(self, in_channels: int) -> None:
        name = _first_convolution(self.backbone)
        old: Any = self.backbone.get_submodule(name)
        new = nn.Conv2d(
            in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        self.backbone.set_submodule(name, new.to(old.weight))


def create_torchvision(
    name: str, *, num_classes: int, in_channels: int, pretrained: bool = False, **options: Any
) -> TorchvisionNet:
    """Builds a network of torchvision's.

    Args:
        name: torchvision's name.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        pretrained: Load torchvision's newest ImageNet weights.
        **options: Further arguments of torchvision's builder.

    Raises:
        UsageError: If the weights cannot be had or do not fit.
    """
    from torchvision.models import get_model_weights

    net = TorchvisionNet(name, num_classes, in_channels, **options)
    if pretrained:
        url = get_model_weights(name).DEFAULT.url
        with loading_weights(f"torchvision/{name}", url):
            state_dict = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            net.load_torchvision(state_dict)
    return net


@cache
def torchvision_names() -> tuple[str, ...]:
    """Returns the names of torchvision's classifiers."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def native_size(name: str) -> int:
    """Returns the height in pixels of the images that torchvision's newest weights were evaluated on."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT.transforms().crop_size[0]


def _build(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    from torchvision.models import get_model

    if name in _TRANSFORMED:
        # Its own default, without the warning that it may change.
        options = {"init_weights": True, **options}
    try:
        return get_model(name, num_classes=num_classes, **options)
    except NotImplementedError:
        # A RegNet computes its widths with tensors, which have no values on the meta device.
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return get_model(name, num_classes=num_classes, **options).to(device)


def _outputs(output: Any) -> list[torch.Tensor]:
    """Returns features first; a network with side branches gives them a name each, in train mode only."""
    # Not asked whether it is a tensor: when the network is cut, torch.fx sends something else through it.
    return list(output) if isinstance(output, tuple) else [output]


def _parts(backbone: nn.Module) -> Iterator[str]:
    for name, child in backbone.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if isinstance(child, Encoder):
            yield from (f"{name}.layers.{inner}" for inner, _ in child.layers.named_children())
            yield f"{name}.ln"
        elif isinstance(child, nn.Sequential) and name in ("features", "layers", "blocks", "trunk_output"):
            yield from (f"{name}.{inner}" for inner, part in child.named_children() if [*part.parameters()])
        else:
            yield name


def _positions(backbone: nn.Module) -> Iterator[str]:
    """Yields the names of the parameters that are of no layer: a vision transformer's token and positions."""
    for name, _ in backbone.named_parameters():
        if isinstance(backbone, VisionTransformer) and "." not in name.removeprefix("encoder."):
            yield name


def _first_convolution(backbone: nn.Module) -> str:
    return next(name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))


def _last_linear(backbone: nn.Module, branch: str) -> str:
    inside = backbone.get_submodule(branch).named_modules()
    return [f"{branch}.{name}" for name, module in inside if isinstance(module, nn.Linear)][-1]
