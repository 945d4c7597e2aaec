"""Other last layers: a network cut after one of its stages, and a head of one or two layers in place of its own."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.models.stages import list_of_stages, stage_parameters

Head = Literal["linear", "mlp"]

_HIDDEN = 256  # features of the hidden layer: enough for tens of classes, few for a few dozen images


class CutNet(nn.Module):
    """The first stages of a network, global average pooling where they end in maps, and a new head.

    What the later stages compute is not computed at all. Side branches go with them.

    Args:
        net: The whole network with timm's contract; its first stages are taken over, not copied.
        cut_at: Number of the last stage to keep, from 0.
        head: `linear` or `mlp`; see `new_head`.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: The same number.

    Raises:
        UsageError: If there is no such stage, or the network cannot be followed or cut there.
    """

    def __init__(
        self, net: nn.Module, cut_at: int, head: Head, num_classes: int, in_channels: int, image_size: int
    ) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        stages = _stages(net)
        if not 0 <= cut_at < len(stages) - 1:
            raise UsageError(
                "cut_at",
                cut_at,
                "no such stage to end with",
                f"the stages are {list_of_stages(net)}, and the last has nothing after it to cut off",
            )
        number_of = {name: number for number, names in enumerate(stages) for name in names}
        try:
            place = _last_node(net, number_of, cut_at)
            self.backbone = create_feature_extractor(
                net,
                {place: "features"},
                tracer_kwargs=tracer_options(),
                suppress_diff_warning=True,
                concrete_args=constant_arguments(net),
            )
        except Exception as error:  # torch.fx cannot follow what depends on the values in a tensor
            reason = " ".join(str(error).split())[:200]
            raise UsageError("cut_at", cut_at, f"this network cannot be cut ({reason})", "leave it out") from error
        self._number_of = number_of
        self._fine_number_of = _fine_groups(net)
        self.num_classes = num_classes
        shape = self._measure(in_channels, image_size, cut_at)
        self.num_features = self.head_hidden_size = shape[1]
        self._ends_in_maps = len(shape) == 4  # known now: torch.fx cannot follow a question about a tensor's shape
        self.head = new_head(head, self.num_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)`, float, for images `(N, in_channels, H, W)`, float."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns what the first of the removed layers would see: maps `(N, num_features, H, W)` or features, float."""
        return self.backbone(images)["features"]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Returns logits for the result of `forward_features`; pooled `(N, num_features)` with `pre_logits`."""
        if self._ends_in_maps:
            features = features.mean((2, 3))
        return features if pre_logits else self.head(features)

    def get_classifier(self) -> nn.Module:
        """Returns the new head."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> Any:
        """Returns a function from a parameter's name to its group: that of the whole network, the head last.

        Args:
            coarse: Group by stages instead of by blocks.
        """
        numbers = self._number_of if coarse else self._fine_number_of
        return lambda name: numbers.get(name.removeprefix("backbone."), len(numbers))

    def _measure(self, in_channels: int, image_size: int, cut_at: int) -> torch.Size:
        like, was_training = next(self.backbone.parameters()), self.training
        with torch.no_grad():
            shape = self.eval().forward_features(like.new_zeros(1, in_channels, image_size, image_size)).shape
        self.train(was_training)
        if len(shape) not in (2, 4):
            raise UsageError(
                "cut_at", cut_at, f"this stage ends in neither maps nor features, but in {tuple(shape)}", "leave it out"
            )
        return shape


def new_head(head: Head, in_features: int, num_classes: int) -> nn.Module:
    """Returns a head with fresh weights.

    Args:
        head: `linear`: one fully connected layer, whose logits are those of a softmax; `mlp`: a hidden layer of 256
            ReLUs before it.
        in_features: Features that it takes.
        num_classes: Number of logits.
    """
    if head == "linear":
        return nn.Linear(in_features, num_classes)
    return nn.Sequential(nn.Linear(in_features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, num_classes))


def draw_classifier(net: nn.Module) -> None:
    """Draws a classifier's weights anew, within 1 / sqrt(features) of 0, torch's own range.

    Some networks draw theirs for training from scratch (EfficientNet within 1 / sqrt(classes)): with trained features
    before it and few classes, such a head starts at several times the loss of a guess.
    """
    for classifier in classifiers(net):
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()


def classifiers(net: nn.Module) -> list[nn.Module]:
    """Returns a network's last layer; both of a distilled one, whose logits are averaged."""
    contract: Any = net
    found = contract.get_classifier()
    return [each for each in (found if isinstance(found, tuple) else (found,)) if isinstance(each, nn.Module)]


def with_new_head(
    net: nn.Module, cut_at: int | None, head: Head, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    """Removes a network's last layers and adds different ones; returns it as it is if neither is asked for.

    Args:
        net: A network with timm's contract, changed in place.
        cut_at: Number of the last stage to keep; None keeps all but the classifier.
        head: See `new_head`; `linear` is the classifier that the network has.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.

    Raises:
        UsageError: As `CutNet`; or if the network's classifier is not a fully connected layer.
    """
    if cut_at is not None:
        return CutNet(net, cut_at, head, num_classes, in_channels, image_size)
    if head == "linear":
        return net
    contract: Any = net
    classifier = contract.get_classifier()
    places = [name for name, module in net.named_modules() if module is classifier]
    if not places or not isinstance(classifier, nn.Linear):
        raise UsageError(
            "head",
            head,
            f"the network ends in a {type(classifier).__name__}, not in a fully connected layer",
            "give linear, or `cut_at=STAGE`",
        )
    net.set_submodule(places[0], new_head(head, classifier.in_features, num_classes))
    return net


def _stages(net: nn.Module) -> list[list[str]]:
    try:
        return stage_parameters(net)
    except ValueError as error:
        raise UsageError("cut_at", None, f"this network {error}", "leave it out") from error


def _fine_groups(net: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    contract: Any = net
    return group_parameters(net, contract.group_matcher(coarse=False), reverse=True)


def _last_node(net: nn.Module, number_of: Mapping[str, int], cut_at: int) -> str:
    """Returns torchvision's name of what the first layer after the cut takes: activation and pooling are in it."""
    from torchvision.models.feature_extraction import NodePathTracer

    was_training = net.training
    tracer = NodePathTracer(**tracer_options())
    graph = tracer.trace(net.eval(), constant_arguments(net))
    net.train(was_training)
    late_names = {name for name, number in number_of.items() if number > cut_at}
    late_modules = set(_modules_within(net, late_names))
    # Nodes that depend on the images, and on something after the cut.
    seen: set[Any] = set()
    late: set[Any] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder" or seen.intersection(inputs):
            seen.add(node)
        place = tracer.node_to_qualname.get(node, "")
        is_late = node.op == "get_attr" and str(node.target) in late_names
        if is_late or late.intersection(inputs) or late_modules.intersection(_prefixes(place)):
            late.add(node)
            if node in seen:
                return tracer.node_to_qualname[next(each for each in inputs if each in seen)]
    raise ValueError("nothing comes after this stage")


def tracer_options() -> dict[str, Any]:
    """Returns what torch.fx is to take as a whole: what timm marks, and what torchvision would without being asked."""
    import torchvision.ops
    from timm.layers import get_notrace_functions, get_notrace_modules

    ops = [each for each in vars(torchvision.ops).values() if isinstance(each, type) and issubclass(each, nn.Module)]
    return {
        "leaf_modules": get_notrace_modules() + ops,
        "autowrap_functions": get_notrace_functions(),
        "autowrap_modules": (math, torchvision.ops),
    }


def constant_arguments(net: nn.Module) -> dict[str, Any]:
    """Returns what `forward` takes besides the images, at its defaults: torch.fx would take it for more of them."""
    parameters = inspect.signature(net.forward).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _modules_within(net: nn.Module, parameters: set[str]) -> Iterator[str]:
    """Yields the names of the modules that have parameters, all of them among these."""
    for place, module in net.named_modules():
        own = [f"{place}.{name}" if place else name for name, _ in module.named_parameters()]
        if own and parameters.issuperset(own):
            yield place


def _prefixes(place: str) -> list[str]:
    """`head.norm.add` -> `head`, `head.norm`, `head.norm.add`."""
    parts = place.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
