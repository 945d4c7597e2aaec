"""Where a network looks: class-activation maps by Grad-CAM (Selvaraju et al. 2017), drawn by the library grad-cam."""

import importlib.util

import numpy as np
import torch
from torch import nn

from lit_cnn.training.classifier import LitClassifier


def why_no_maps(model: LitClassifier) -> str:
    """Returns in a sentence why there can be no maps of a network; empty if there can."""
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        return "Class-activation maps need grad-cam: pip install -e '.[grad-cam]'."
    if _last_feature_maps(model) is None:
        return f"{model.hparams['arch']} ends in no feature maps of more than one place: no class-activation maps."
    return ""


def activation_maps(model: LitClassifier, images: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Draws over each image what spoke for a class: the last feature maps, weighted by the class's gradient.

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
    with GradCAM(model=model, target_layers=[_last_feature_maps(model)]) as cam:
        maps = cam(input_tensor=images, targets=targets)
    model.zero_grad()
    pixels = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy().astype(np.float32) / 255
    return np.stack([show_cam_on_image(own, map_, use_rgb=True) for own, map_ in zip(pixels, maps, strict=True)])


def _last_feature_maps(model: LitClassifier) -> nn.Module | None:
    """Returns the last module that gives `(N, C, H, W)` with more than one place; None for one that speaks in tokens.

    A transformer's tokens are `(N, T, C)`, or `(N, H, W, C)` in Swin's windows.
    """
    found: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: object) -> None:
        if isinstance(output, torch.Tensor):
            found.append((module, output.shape))

    net: nn.Module = model.net
    hooks = [module.register_forward_hook(note) for module in net.modules() if module is not net]
    shape = (1, model.hparams["in_channels"], *2 * (model.hparams["image_size"],))
    try:
        with torch.no_grad():
            model(torch.zeros(shape, dtype=torch.uint8, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    spatial = [(module, shape) for module, shape in found if len(shape) > 2 and shape[2:].numel() > 1]
    if not spatial or len(spatial[-1][1]) != 4 or spatial[-1][1][3] == getattr(net, "num_features", None):
        return None
    return spatial[-1][0]
