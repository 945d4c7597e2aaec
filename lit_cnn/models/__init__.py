"""Architectures by name: ours first, else timm's; torchvision's with the prefix `torchvision/`.

Ours carry timm's contract: `num_features`, `head_hidden_size`, `forward_features`, `forward_head(pre_logits=)`,
`get_classifier`, `reset_classifier` and `group_matcher`. To add one, write a file in this folder and a line in
`BUILDERS`; the tests pick it up from there.
"""

import bisect
import contextlib
import difflib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError

if TYPE_CHECKING:
    # torch and timm take seconds to import; asking for our names, as --help does, needs neither.
    from torch import nn

BUILDERS = {
    "lenet5": "lenet:LeNet5",
    **{f"plain{depth}": f"resnet:plain{depth}" for depth in (18, 20, 32, 34, 44, 56, 110)},
    **{f"residual{depth}": f"resnet:residual{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}": f"resnet:resnet{depth}" for depth in (20, 32, 44, 56, 110)},
    "lenet5_1998": "lenet_1998:LeNet5_1998",
    "alexnet": "alexnet:AlexNet",
    "nin": "nin:NetworkInNetwork",
    "googlenet": "googlenet:GoogLeNet",
    "airbench": "airbench:AirBench",
}
"""Our architectures: name -> module in this package, and class or function with `num_classes`, `in_channels` and
`image_size` (pixels) as its arguments; any further ones are the architecture's options."""

_LARGEST_TRIED = 512  # pixels; no network that takes images of any size needs more


def create_model(
    arch: str, *, num_classes: int, in_channels: int, image_size: int, pretrained: bool = False, **arch_options: Any
) -> "nn.Module":
    """Builds a network whose `forward` takes images `(N, in_channels, image_size, image_size)`, float.

    It is first tried on the meta device, in milliseconds, so a mistake shows before weights are drawn or fetched.
    Where that is the default device, the network that was tried is the one returned.

    Args:
        arch: Name of the architecture: ours first, else timm's; `lit/NAME`, `timm/NAME` and `torchvision/NAME` force
            the origin.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        pretrained: Load timm's or torchvision's own weights (with a new classifier if `num_classes` differs).
        **arch_options: Further arguments of the architecture, of `timm.create_model` or of torchvision's builder.

    Returns:
        The network, in train mode, on the default device.

    Raises:
        UsageError: If there is no such architecture, it has no such option or refuses its value, has no pretrained
            weights, or does not take images of that size.
    """
    plan = _Plan(resolve_arch(arch), num_classes, in_channels, arch_options)
    if pretrained and not plan.has_pretrained_weights():
        raise UsageError("arch", arch, "there are no pretrained weights for it", "train it, or choose another")
    import torch

    try:
        tried = plan.try_on_meta(image_size)
    except UsageError:
        raise
    except Exception as error:  # each network fails in its own way
        mistake = _mistake(plan, image_size, error)
        if mistake is None:
            raise
        raise mistake from error
    if torch.get_default_device().type == "meta" and not pretrained:
        return tried.train()
    return plan.build(image_size, pretrained)


def resolve_arch(arch: str) -> str:
    """Returns the architecture's name with its origin: `lit/lenet5` for `lenet5`, `timm/resnet18` for `resnet18`.

    Raises:
        UsageError: If there is none of that name; the message gives the nearest names.
    """
    origin, separator, name = arch.rpartition("/")
    if name in BUILDERS and (not separator or origin == "lit"):
        return f"lit/{name}"
    if (not separator or origin == "timm") and _is_timm_name(name):
        return f"timm/{name}"
    if origin == "torchvision" and name in _torchvision_names():
        return arch
    raise UsageError("arch", arch, "no such architecture", f"nearest: {', '.join(_nearest(origin, name))}")


def least_image_size(arch: str, *, num_classes: int = 10, in_channels: int = 1, **arch_options: Any) -> int:
    """Returns the least height and width, in pixels, of the images that the architecture takes; found by trying.

    Raises:
        UsageError: If there is no such architecture, or it does not take images of 512 px (a wrong option, or a network
            for one fixed size).
    """
    size = _Plan(resolve_arch(arch), num_classes, in_channels, arch_options).least_image_size()
    if size is None:
        raise UsageError("arch", arch, f"does not take images of {_LARGEST_TRIED} px, so no least size was found")
    return size


@dataclass(frozen=True)
class _Plan:
    """What `create_model` was asked for, apart from the size of the images."""

    resolved: str
    num_classes: int
    in_channels: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The name without its origin."""
        return self.resolved.split("/", 1)[1]

    @property
    def origin(self) -> str:
        """`lit`, `timm` or `torchvision`."""
        return self.resolved.split("/", 1)[0]

    def build(self, image_size: int, pretrained: bool = False) -> "nn.Module":
        """Builds the network for square images of `image_size` pixels; raises whatever its maker raises."""
        if self.origin == "lit":
            return _builder(self.name)(
                num_classes=self.num_classes, in_channels=self.in_channels, image_size=image_size, **self.options
            )
        if self.origin == "torchvision":
            from lit_cnn.models.torchvision_net import create_torchvision

            size = {"num_classes": self.num_classes, "in_channels": self.in_channels}
            return create_torchvision(self.name, pretrained=pretrained, **size, **self.options)
        import timm

        from lit_cnn.models.hub import loading_weights

        with loading_weights(self.name) if pretrained else contextlib.nullcontext():
            return timm.create_model(
                self.name,
                pretrained=pretrained,
                num_classes=self.num_classes,
                in_chans=self.in_channels,
                **self.options,
            )

    def try_on_meta(self, image_size: int) -> "nn.Module":
        """Builds the network and sends one image through it, shapes only; raises whatever the network raises."""
        import torch

        with torch.device("meta"), torch.no_grad():
            net = self.build(image_size).eval()
            net(torch.empty(1, self.in_channels, image_size, image_size))
        return net

    def fits(self, image_size: int) -> bool:
        """Tells whether the network takes square images of `image_size` pixels."""
        try:
            self.try_on_meta(image_size)
        except Exception:  # each network fails in its own way
            return False
        return True

    def least_image_size(self) -> int | None:
        """Returns the least size in pixels that the network takes; None if that is beyond all that are tried."""
        sizes = range(1, _LARGEST_TRIED + 1)
        index = bisect.bisect_left(sizes, True, key=self.fits)
        return sizes[index] if index < len(sizes) else None

    def has_pretrained_weights(self) -> bool:
        """Tells whether timm or torchvision has weights of it."""
        if self.origin != "timm":
            return self.origin == "torchvision"
        import timm

        return timm.is_model_pretrained(self.name)


def _mistake(plan: _Plan, image_size: int, error: Exception) -> UsageError | None:
    """Returns what the user did wrong, given how the network failed on the meta device; None if it is our own bug."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown and unknown[1] in plan.options:
        names = ", ".join(_option_names(plan)) or "none"
        return UsageError("arch_options", unknown[1], f"{plan.resolved} has no such option", f"its options: {names}")
    least = plan.least_image_size()
    # Some networks take multiples of a number only, so that one more pixel is wrong again: no least size is meant then.
    if least is not None and image_size < least and plan.fits(least + 1):
        return UsageError("image_size", image_size, f"too small for {plan.resolved}", f"give {least} or more")
    reason = " ".join(str(error).split())
    if plan.options and replace(plan, options={}).fits(image_size):
        return UsageError("arch_options", plan.options, f"{plan.resolved} refuses them: {reason}")
    if plan.origin != "lit":  # for example a vision transformer, made for one size
        return UsageError("image_size", image_size, f"{plan.resolved} does not take it: {reason}")
    if isinstance(error, ValueError):  # ours say what they take: images of one size, or ten classes
        return UsageError("arch", plan.name, reason)
    return None


def _option_names(plan: _Plan) -> list[str]:
    """Returns the names of the options that the architecture's class or function declares."""
    target: Callable[..., Any]
    if plan.origin == "lit":
        given, target = {"num_classes", "in_channels", "image_size"}, _builder(plan.name)
    elif plan.origin == "torchvision":
        import torch

        with torch.device("meta"):
            net: Any = replace(plan, options={}).build(image_size=0)
        given, target = {"num_classes"}, type(net.backbone)
    else:
        import torch

        with torch.device("meta"):
            given, target = {"num_classes", "in_chans"}, type(replace(plan, options={}).build(image_size=0))
    # Those without a default are what makes one name of a family differ from the next.
    has_default = [p.name for p in inspect.signature(target).parameters.values() if p.default is not p.empty]
    return [option for option in has_default if option not in given]


def _builder(name: str) -> Callable[..., "nn.Module"]:
    return pkgutil.resolve_name(f"{__name__}.{BUILDERS[name]}")


def _is_timm_name(name: str) -> bool:
    """Tells whether timm knows the name, with the tag of its pretrained weights if it has one (`resnet18.a1_in1k`)."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    family, _, tag = name.partition(".")
    return timm.is_model(family) and (not tag or name in get_arch_pretrained_cfgs(family))


def _torchvision_names() -> tuple[str, ...]:
    from lit_cnn.models.torchvision_net import torchvision_names

    return torchvision_names()


def _nearest(origin: str, name: str) -> list[str]:
    import timm

    names = {
        "lit": list(BUILDERS),
        "timm": timm.list_models(),
        "torchvision": [f"torchvision/{name}" for name in _torchvision_names()],
    }
    if not origin and name in _torchvision_names():
        return [f"torchvision/{name}"]  # which neither we nor timm have
    known = names.get(origin) or names["lit"] + names["timm"]
    prefix = "torchvision/" if origin == "torchvision" else ""
    return difflib.get_close_matches(prefix + name.lower(), known, n=3, cutoff=0)
