"""Where a network looks: class-activation maps by Grad-CAM (Selvaraju et al. 2017), drawn by the library grad-cam."""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.models.heads import classifiers
from lit_cnn.reports.mistakes import Maps
from lit_cnn.reports.predictions import Predictions
from lit_cnn.training.classifier import LitClassifier


def maps_of(load_model: Callable[[], LitClassifier] | None) -> Maps | None:
    """Returns what draws a network's maps of its mistakes for a report, for the class predicted; None of None.

    Args:
        load_model: Returns the network.
    """
    if load_model is None:
        return None

    def draw(predictions: Predictions, places: np.ndarray) -> tuple[list[np.ndarray] | None, str]:
        model = load_model()
        if reason := why_no_maps(model):
            return None, reason
        how = [model.hparams[name] for name in ("image_size", "interpolation", "crop_pct")]
        pixels = [predictions.image_set.images[index] for index in predictions.indices[places]]
        images = np.stack([resize_and_center_crop(each, *how) for each in pixels])
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        maps = list(activation_maps(model, tensor, predictions.labels[places]))
        arch = model.hparams["arch"]
        return maps, f"Grad-CAM (Selvaraju et al. 2017) of {arch}: red is what spoke for the class chosen."

    return draw


def why_no_maps(model: LitClassifier) -> str:
    """Returns in a sentence why there can be no maps of a network; empty if there can."""
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        return "Class-activation maps need grad-cam: pip install -e '.[grad-cam]'."
    if _last_places(model) is None:
        arch = model.hparams["arch"]
        return f"{arch} ends in no feature maps or tokens of more than one place: no class-activation maps."
    return ""


def activation_maps(model: LitClassifier, images: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Draws over each image what spoke for a class: the last feature maps, weighted by the class's gradient.

    A transformer's are the last tokens of patches that the classifier depends on, laid out as their patches are.

    Args:
        model: In evaluation mode; `why_no_maps` has nothing against it.
        images: `(N, C, S, S)` uint8, C 1 or 3.
        labels: `(N,)` int, the class of each that is explained.

    Returns:
        `(N, S, S, 3)` uint8.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    places = _last_places(model)
    assert places is not None
    with GradCAM(model=model, target_layers=[places.module], reshape_transform=places.as_maps) as cam:
        maps = cam(input_tensor=images, targets=targets)
    model.zero_grad()
    pixels = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy().astype(np.float32) / 255
    return np.stack([show_cam_on_image(own, map_, use_rgb=True) for own, map_ in zip(pixels, maps, strict=True)])


@dataclass(frozen=True)
class _Places:
    """A layer whose output has features for each place of an image.

    Attributes:
        module: The layer.
        layout: Of its output: `maps` is `(N, C, H, W)`, `windows` `(N, H, W, C)`, `tokens` `(N, T, C)`.
        num_others: Tokens that stand before those of the patches: class tokens, registers.
    """

    module: nn.Module
    layout: Literal["maps", "windows", "tokens"]
    num_others: int = 0

    def as_maps(self, output: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output, or its gradient, as `(N, C, H, W)`."""
        if self.layout == "maps":
            return output
        if self.layout == "tokens":
            side = math.isqrt(output.shape[1] - self.num_others)
            output = output[:, self.num_others :].unflatten(1, (side, side))
        return output.permute(0, 3, 1, 2)


def _last_places(model: LitClassifier) -> _Places | None:
    """Returns the last layer with features of more than one place; None if there is none.

    Of a transformer that classifies by its class token, these are the last tokens that this one is computed from: those
    of patches in the last attention. Nothing depends on what comes after.
    """
    net: nn.Module = model.net
    found: list[tuple[_Places, torch.Tensor]] = []
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: object) -> None:
        calls[module] += 1
        if isinstance(output, torch.Tensor) and (places := _places_of(module, net, output)) is not None:
            found.append((places, output))

    seen_by_classifier: list[torch.Tensor] = []
    hooks = [module.register_forward_hook(note) for module in net.modules() if module is not net]
    hooks += [
        each.register_forward_pre_hook(lambda _, arguments: seen_by_classifier.append(arguments[0]))
        for each in classifiers(net)
    ]
    shape = (1, model.hparams["in_channels"], *2 * (model.hparams["image_size"],))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad():
            logits = model(pixels.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if all(places.layout == "maps" for places, _ in found):
        return found[-1][0] if found else None
    # Those of the attention's heads are no maps. A layer that is called twice may see tokens of two kinds.
    width = getattr(net, "num_features", None)
    wide = [
        (places, output)
        for places, output in found
        if calls[places.module] == 1 and (places.layout != "maps" or output.shape[1] == width)
    ]
    answer = torch.cat([each.flatten() for each in seen_by_classifier or [logits]])
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(0)).to(answer)
    gradients = torch.autograd.grad((answer * weights).sum(), [output for _, output in wide], allow_unused=True)
    for (places, _), gradient in reversed(list(zip(wide, gradients, strict=True))):
        if gradient is not None and places.as_maps(gradient).abs().sum(1).count_nonzero() > 1:
            return places
    return None


def _places_of(module: nn.Module, net: nn.Module, output: torch.Tensor) -> _Places | None:
    """Returns how the output `(1, ...)` of a layer is laid out; None if it has no places, or one."""
    shape, width = output.shape, getattr(net, "num_features", None)
    if len(shape) == 4 and shape[3] == width and shape[1] == shape[2] > 1:
        return _Places(module, "windows")
    if len(shape) == 4 and shape[2] * shape[3] > 1:
        return _Places(module, "maps")
    if len(shape) != 3 or shape[2] != width:
        return None
    # What a network says of its tokens; else as few as leave a square.
    likely = (getattr(net, "num_prefix_tokens", 0), *range(9))
    for num_others in likely:
        side = math.isqrt(max(0, shape[1] - num_others))
        if side > 1 and side**2 == shape[1] - num_others:
            return _Places(module, "tokens", num_others)
    return None
