"""Architectures by name: ours first, else timm's; torchvision's with the prefix `torchvision/`.

Ours carry timm's contract: `num_features`, `head_hidden_size`, `forward_features`, `forward_head(pre_logits=)`,
`get_classifier`, `reset_classifier` and `group_matcher`. To add one, write a file in this folder and a line in
`BUILDERS`; the tests pick it up from there.
"""

import bisect
import difflib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError
from lit_cnn.models.sizes import SIZE_OPTIONS, not_logits, require_whole_patches

if TYPE_CHECKING:
    # torch and timm take seconds to import; asking for our names, as --help does, needs neither.
    from torch import Tensor, nn

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

_FARTHEST_TRIED = 64  # pixels
_ODD_SIZES = (461, 511)  # pixels, whose halves are multiples of nothing
_LARGEST_TRIED = 512  # pixels; no network that takes images of any size needs more


def create_model(
    arch: str, *, num_classes: int, in_channels: int, image_size: int, pretrained: bool = False, **arch_options: Any
) -> "nn.Module":
    """Builds a network whose `forward` takes images `(N, in_channels, image_size, image_size)`, float.

    It is first tried on the meta device, in milliseconds, so a mistake shows before weights are drawn or fetched.
    Where that is the default device, the network that was tried is the one returned. A network that is made for images
    of one size, as vision transformers are, is made for `image_size`, its pretrained weights resampled as timm does.

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
        plan, tried = plan.try_for_size(image_size)
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


def weights_at_size(
    arch: str,
    weights: "Mapping[str, Tensor]",
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    **arch_options: Any,
) -> "dict[str, Tensor]":
    """Returns weights of the same network for images of another size, resampled as timm or torchvision does.

    Args:
        arch: Name of the architecture.
        weights: By the names of the network's own; what is missing counts as zeros.
        num_classes: As for `create_model`.
        in_channels: As for `create_model`.
        image_size: Of the images that the network is to take, in pixels.
        **arch_options: As for `create_model`.

    Raises:
        Exception: Whatever timm or torchvision raises where nothing of theirs resamples these weights.
    """
    import torch

    plan, on_meta = _Plan(resolve_arch(arch), num_classes, in_channels, arch_options).try_for_size(image_size)
    if plan.origin != "timm":
        contract: Any = on_meta
        return contract.resample(weights) if plan.origin == "torchvision" else dict(weights)
    own = on_meta.state_dict()
    whole = {name: weights[name] if name in weights else torch.zeros_like(own[name], device="cpu") for name in own}
    # timm resamples what it loads into a network, and says so in no other way.
    loads = {"state_dict": whole, "source": "", "custom_load": False, "classifier": None, "first_conv": None}
    with torch.random.fork_rng(devices=[]):
        overlay = {**arch_options.get("pretrained_cfg_overlay", {}), **loads}
        sized = replace(plan, options={**plan.options, "pretrained_cfg_overlay": overlay})
        return sized._build_timm(pretrained=True).state_dict()


def resolve_arch(arch: str) -> str:
    """Returns the architecture's name with its origin: `lit/lenet5` for `lenet5`, `timm/resnet18` for `resnet18`.

    timm's addresses of a hub or a folder (`hf-hub:timm/resnet18.a1_in1k`) are no names: what such a network is made of
    stands in a file that would have to be fetched whenever a checkpoint is read.

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
    if ":" in arch:
        raise UsageError("arch", arch, "is an address, not a name", _name_at(name))
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
        if not pretrained:
            return self._build_timm(pretrained=False)
        from lit_cnn.models.hub import loading_weights

        with loading_weights(self.name):
            try:
                return self._build_timm(pretrained=True)
            except RuntimeError as error:
                if "size mismatch" not in str(error):
                    raise
                reason = f"the pretrained weights of {self.resolved} are for another size, and cannot be resampled"
                sizes = " or ".join(map(str, self.native_sizes()))
                raise UsageError("image_size", image_size, reason, f"give {sizes}" if sizes else "") from error

    def _build_timm(self, pretrained: bool) -> "nn.Module":
        import timm

        size: dict[str, Any] = {"num_classes": self.num_classes, "in_chans": self.in_channels}
        with warnings.catch_warnings():
            # Of torch to timm, about how it resamples.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers")
            return timm.create_model(self.name, pretrained=pretrained, **size, **self.options)

    @cached_property
    def _of_any_size(self) -> "nn.Module":
        """The network on the meta device, in evaluation mode: any but ours is the same at every size."""
        import torch

        with torch.device("meta"):
            return self.build(0).eval()

    def try_on_meta(self, image_size: int) -> "nn.Module":
        """Builds the network and sends one image through it, shapes only; raises whatever the network raises."""
        import torch

        with torch.device("meta"), torch.no_grad():
            net = self.build(image_size).eval() if self.origin == "lit" else self._of_any_size
            output = net(torch.empty(1, self.in_channels, image_size, image_size))
        if self.origin != "lit" and (found := not_logits(output, self.num_classes)) is not None:
            reason = f"{self.resolved} gives {found} for an image, not {self.num_classes} logits"
            if not self.options:
                raise UsageError("arch", self.name, reason, "choose a classifier")
            other = ", or give `arch=torchvision/inception_v3`, which trains its side branch"
            is_inception = self.name.startswith("inception_v3") and "aux_logits" in self.options
            raise UsageError("arch_options", self.options, reason, f"leave them out{other * is_inception}")
        return net

    def try_for_size(self, image_size: int) -> "tuple[_Plan, nn.Module]":
        """Tries the network as it is, then as one made for that size; returns the plan that works and what it built.

        What takes images of that size anyway stays what it was. Raises whatever the network raises.
        """
        try:
            return self, self.try_on_meta(image_size)
        except UsageError:
            raise
        except Exception as error:  # each network fails in its own way
            failed = error
        for name, plan in self._for_size(image_size):
            try:
                net = plan.try_on_meta(image_size)
                require_whole_patches(net, image_size)
                return plan, net
            except Exception as error:
                if f"'{name}'" not in str(error):  # it has this option, and says why it refuses the size
                    failed = error
        raise failed

    def _for_size(self, image_size: int) -> "Iterator[tuple[str, _Plan]]":
        """Yields what may make a network for images of that size: the name of the option, and the plan with it."""
        size_options = SIZE_OPTIONS.get(self.origin, {})
        if self.options.keys().isdisjoint(size_options):
            for name, value in size_options.items():
                yield name, replace(self, options={**self.options, name: value(image_size)})

    def fits(self, image_size: int) -> bool:
        """Tells whether the network takes square images of `image_size` pixels."""
        try:
            self.try_for_size(image_size)
        except Exception:  # each network fails in its own way
            return False
        return True

    def nearest_sizes(self, image_size: int) -> list[int]:
        """Returns the nearest sizes in pixels, below and above, that the network takes: multiples of 14 or 16."""
        below = range(image_size - 1, max(0, image_size - _FARTHEST_TRIED), -1)
        above = range(image_size + 1, image_size + _FARTHEST_TRIED)
        likely = ((size for size in sizes if size % 14 == 0 or size % 16 == 0) for sizes in (below, above))
        nearest = (next((size for size in sizes if self.fits(size)), None) for sizes in likely)
        return [size for size in nearest if size is not None]

    def least_image_size(self) -> int | None:
        """Returns the least size in pixels that the network takes; None if that is beyond all that are tried."""
        sizes = range(1, _LARGEST_TRIED + 1)
        index = bisect.bisect_left(sizes, True, key=self.fits)
        return sizes[index] if index < len(sizes) else None

    def native_sizes(self) -> list[int]:
        """Returns the size in pixels that timm's network was made for, if it takes that."""
        import timm

        config = timm.get_pretrained_cfg(self.name) if self.origin == "timm" else None
        size = config.input_size[-1] if config is not None and config.input_size else 224
        as_is = {name: value for name, value in self.options.items() if name not in SIZE_OPTIONS.get(self.origin, {})}
        return [size] if replace(self, options=as_is).fits(size) else []

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
    # Some networks take one size, or multiples of a number only: no least size is meant then.
    least = plan.least_image_size() if all(map(plan.fits, _ODD_SIZES)) else None
    if least is not None and image_size < least and plan.fits(least + 1):
        return UsageError("image_size", image_size, f"too small for {plan.resolved}", f"give {least} or more")
    reason = " ".join(str(error).split()) or f"{type(error).__name__} in its layers"
    if plan.options and replace(plan, options={}).fits(image_size):
        return UsageError("arch_options", plan.options, f"{plan.resolved} refuses them: {reason}")
    if plan.origin != "lit":  # for example a vision transformer, made for multiples of its patches
        sizes = " or ".join(map(str, plan.nearest_sizes(image_size) or plan.native_sizes()))
        remedy = f"give {sizes}" if sizes else ""
        return UsageError("image_size", image_size, f"{plan.resolved} does not take it: {reason}", remedy)
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


def _name_at(name: str) -> str:
    """Returns how to give the network at an address whose last part is this."""
    if _is_timm_name(name):
        has_tag = "." in name
        weights = "`weights=pretrained`" if has_tag else "`weights=pretrained` (timm's default ones)"
        return f"give `arch={name}` with {weights}, or its file: `weights=FILE.safetensors`"
    return "give the `architecture` of its config.json as `arch`, and its downloaded file: `weights=FILE.safetensors`"


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
