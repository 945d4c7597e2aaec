"""The formats: how a network is written, and loaded again. None is a pickle."""

import json
import sys
import tempfile
import warnings
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import sha256_of_file, size_in_words
from lit_cnn.evaluation.statistics import is_at_bound
from lit_cnn.exports.network import CombinedNet
from lit_cnn.portable import (
    CARD,
    INPUT,
    OUTPUT,
    ImageClassifier,
    ModelCard,
    first_line,
    load_graph,
    needed_package,
    probed,
    read_card,
    read_files,
)
from lit_cnn.training.classifier import LitClassifier

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
"""What each format needs besides torch: packages of the extra `export`."""

OF_NETWORK = ("arch", "arch_options", "cut_at", "head", "mean", "std")
"""The hyperparameters of a classifier that define its network, besides its images and number of classes."""

CLASS_NAMES = "class_names"
"""What a graph of ONNX or OpenVINO calls its class names, in label order, JSON, among its metadata."""

_LARGEST_ONNX = 2**31 - 2**20  # bytes of weights; the file holds 2 GiB with the graph


def write_export(folder: Path, net: CombinedNet, card: ModelCard, format: str) -> ModelCard:
    """Writes a model's files and `model.json` into a folder.

    Args:
        folder: Where to.
        net: On the CPU, in eval mode.
        card: What it is, but for format, versions and digests.
        format: `onnx`, `openvino` or `torch`.

    Returns:
        The card as written.

    Raises:
        UsageError: If the weights are too many for the format.
    """
    if format == "torch":
        from safetensors.torch import save_file

        save_file(
            {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()},
            folder / "model.safetensors",
        )
    elif format == "onnx":
        _write_onnx(folder / "model.onnx", net, card)
    else:
        _write_openvino(folder, net, card)
    versions = {"lit_cnn": __version__, **{name: installed(name) for name in ("torch", *PACKAGES[format])}}
    digests = {file.name: sha256_of_file(file) for file in sorted(folder.iterdir())}
    card = replace(card, format=format, versions=versions, sha256=digests)
    (folder / CARD).write_text(card.to_json(), encoding="utf-8")
    return card


def _write_onnx(file: Path, net: CombinedNet, card: ModelCard) -> None:
    num_bytes = sum(tensor.nbytes for tensor in net.state_dict().values())
    if num_bytes > _LARGEST_ONNX:
        reason = f"the weights take {size_in_words(num_bytes)}, ONNX holds {size_in_words(_LARGEST_ONNX)}"
        raise UsageError("format", None, reason, "give `format=torch`")
    images = torch.zeros(2, card.in_channels, card.image_size, card.image_size, dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch's exporter itself calls what torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net,
            (images,),
            file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx = needed_package("onnx", "format", "onnx")
    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, {CLASS_NAMES: _as_json(card)})
    onnx.save(graph, file)


def _write_openvino(folder: Path, net: CombinedNet, card: ModelCard) -> None:
    openvino = needed_package("openvino", "format", "openvino")
    # By way of ONNX: its own converter of torch's networks would need them traced, and reports its use to its maker.
    with tempfile.TemporaryDirectory() as place:
        _write_onnx(Path(place, "model.onnx"), net, card)
        graph = openvino.Core().read_model(Path(place, "model.onnx").read_bytes())
    graph.set_rt_info(_as_json(card), ["model_info", CLASS_NAMES])
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)


def _as_json(card: ModelCard) -> str:
    """Returns the class names as the graph itself has them, for whoever gets the file without `model.json`."""
    return json.dumps(card.class_names, ensure_ascii=False)


def load_folder(folder: Path) -> ImageClassifier:
    """Loads an export of any format from the folder that has `model.json`; see `lit_cnn.exports.load`."""
    card = read_card(folder)
    if is_at_bound(card.temperature):  # earlier releases took every one
        reason = f"its temperature, {card.temperature:g}, is where the fit stopped: its probabilities are wrong"
        print(f"lit-cnn: warning: {folder}: {reason}; export the model again", file=sys.stderr)
    return _load_torch(folder, card) if card.format == "torch" else load_graph(folder)


def _load_torch(folder: Path, card: ModelCard) -> ImageClassifier:
    """Rebuilds the networks from the card and puts the weights in."""
    from safetensors.torch import load

    content = read_files(folder, card)["model.safetensors"]
    size: dict[str, Any] = {
        "num_classes": len(card.class_names),
        "in_channels": card.in_channels,
        "image_size": card.image_size,
    }
    try:
        models = [LitClassifier(**{name: member[name] for name in OF_NETWORK}, **size) for member in card.members]
        net = CombinedNet(models, card)
        net.load_state_dict(load(content))
    except Exception as error:  # of whatever network the card names, each in its own way
        reason = f"its network cannot be built from {CARD} and the weights ({first_line(error)})"
        raise UsageError("source", folder, reason, "export the model again") from error
    net.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(images)).numpy()

    return probed(card.classifier(run), folder)
