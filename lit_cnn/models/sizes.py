"""What makes a network one for images of a certain size, and whether its answer to one is logits."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Names of architectures are told without the seconds that torch takes to import.
    from torch import nn

SIZE_OPTIONS: dict[str, dict[str, Callable[[int], Any]]] = {
    "timm": {"img_size": lambda size: size},
    "torchvision": {"image_size": lambda size: size, "input_size": lambda size: (size, size)},
}
"""Where an architecture is from -> what its makers call the size of the images -> that option for a size in pixels."""


def require_whole_patches(net: "nn.Module", image_size: int) -> None:
    """Refuses a size of which the first convolution, over patches side by side, would leave out the last pixels.

    Args:
        net: Made for images of that size.
        image_size: Height and width in pixels.

    Raises:
        ValueError: If so.
    """
    from torch import nn

    first = next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.kernel_size == first.stride and image_size % (patch := first.stride[0]):
        raise ValueError(f"{image_size} is not divisible by its patches of {patch} x {patch} px")


def not_logits(output: Any, num_classes: int) -> str | None:
    """Returns in words what a network gave for one image, if that is not `(1, num_classes)`; else None.

    Args:
        output: Of the network.
        num_classes: Number of logits; 0 is a network without classifier, which gives one tensor.
    """
    import torch

    outputs = list(output) if isinstance(output, tuple | list) else [output]
    shapes = [tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__ for each in outputs]
    if len(shapes) == 1 and (not num_classes or shapes[0] == (1, num_classes)):
        return None
    return " and ".join(map(str, shapes))
