"""An exported model: reads the folder that `lit-cnn export` wrote, and classifies images with it.

Neither torch nor MLflow is needed here. The folder holds one model and `model.json`; nothing in it is a pickle, the
names of its files are fixed, and each is checked against its SHA-256 before anything else reads it.
"""

import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import Interpolation, resize_and_center_crop

CARD = "model.json"
SCHEMA_VERSION = 1
FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin"), "torch": ("model.safetensors",)}
)
"""The files of each format, besides `model.json`."""

INPUT, OUTPUT = "images", "probabilities"
"""What the graph calls its input, `(N, C, S, S)` uint8, and its output, `(N, num_classes)` float32."""

_EXPORT_AGAIN = "export the model again"
_IN_PYFUNC = Path("artifacts", "export")
_LARGEST_IMAGE = 16384  # pixels; a card that asks for more would fill the memory


@dataclass(frozen=True)
class ImageClassifier:
    """What gives images their classes: a checkpoint's network, or an export.

    Attributes:
        class_names: In label order.
        image_size: S, pixels of the square that it takes.
        in_channels: 1 (gray) or 3 (RGB).
        interpolation: How images are resized.
        crop_pct: Share of the shorter side that the square shows, in (0, 1].
        probabilities: From images `(N, C, S, S)` uint8 to `(N, num_classes)` float32, rows sum to 1.
        pixel_range: The values that are black and white in files of more than 8 bits; None: 16 bits are used in full.
        background: RGB from 0 to 255 behind transparent pixels; None drops transparency.
        max_pixels: How many pixels an image of its training might have; None: as many as by default.
    """

    class_names: Sequence[str]
    image_size: int
    in_channels: int
    interpolation: Interpolation
    crop_pct: float
    probabilities: Callable[[np.ndarray], np.ndarray]
    pixel_range: Sequence[float] | None = None
    background: Sequence[int] | None = None
    max_pixels: int | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What decides how an image is seen: `image_size`, `interpolation` and `crop_pct`."""
        return {name: getattr(self, name) for name in ("image_size", "interpolation", "crop_pct")}

    def view(self, image: np.ndarray) -> np.ndarray:
        """Returns an `(H, W, C)` uint8 image of any size as validation sees it: `(C, S, S)` uint8."""
        view = resize_and_center_crop(image, self.image_size, self.interpolation, self.crop_pct)
        return view.transpose(2, 0, 1)


@dataclass(frozen=True)
class ModelCard:
    """What `model.json` says of the model in its folder.

    Attributes:
        format: A key of `FILES`.
        class_names: In label order.
        image_size: S: the shorter side is resized to round(S / crop_pct) pixels, the central S x S taken.
        in_channels: 1 (gray) or 3 (RGB).
        interpolation: How; see `lit_cnn.data.transforms.resize_shorter_side`.
        views: 1, or 2 with the mirror image; inside the graph.
        temperature: What the logarithm of the probabilities is divided by; inside the graph; 1 if none was fitted.
        combine: `mean` of the members' probabilities or of their `logits`.
        members: Each network's weight, run, architecture, mean and standard deviation.
        versions: Package -> version that wrote the export.
        parity: How far the model agreed with the stored predictions of its members.
        sha256: File name -> SHA-256 of its bytes.
        crop_pct: Share of the shorter side that the square shows, in (0, 1]; 1 in exports that do not say it.
        schema: Raised when these fields mean something else.
        registered: Its addresses in MLflow's registry, such as `models:/NAME/3`; not in `model.json`.
        pixel_range: The values that are black and white in files of more than 8 bits. Like `background` it is in
            `model.json` only where it is not None.
        background: RGB from 0 to 255 behind transparent pixels; None drops transparency.
        max_pixels: How many pixels an image of its training might have; in `model.json` only where it is not None.
    """

    format: str
    class_names: list[str]
    image_size: int
    in_channels: int
    interpolation: Interpolation
    views: int
    temperature: float
    combine: str
    members: list[dict[str, Any]]
    versions: dict[str, str]
    parity: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    crop_pct: float = 1.0
    schema: int = SCHEMA_VERSION
    registered: tuple[str, ...] = ()
    pixel_range: list[float] | None = None
    background: list[int] | None = None
    max_pixels: int | None = None

    def to_json(self) -> str:
        """Returns the text of `model.json`."""
        fields = {name: value for name, value in asdict(self).items() if name in _CHECKS}
        fields = {name: value for name, value in fields.items() if value is not None or name not in _OPTIONAL}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    def classifier(self, probabilities: Callable[[np.ndarray], np.ndarray]) -> ImageClassifier:
        """Returns the classifier whose network is given."""
        return ImageClassifier(
            self.class_names,
            self.image_size,
            self.in_channels,
            self.interpolation,
            self.crop_pct,
            probabilities,
            pixel_range=self.pixel_range,
            background=self.background,
            max_pixels=self.max_pixels,
        )


def export_folder(folder: Path) -> Path:
    """Returns the folder that has `model.json`: the one given, or the one inside an MLflow model.

    Raises:
        UsageError: If neither has it.
    """
    for place in (folder, folder / _IN_PYFUNC):
        if (place / CARD).is_file():
            return place
    reason = f"has no {CARD}" if folder.is_dir() else "no such folder"
    advice = "give a folder that lit-cnn export wrote, or models:/NAME@ALIAS"
    raise UsageError("source", folder, reason, advice)


def read_card(folder: Path) -> ModelCard:
    """Reads `model.json`.

    Raises:
        UsageError: If it is not what `lit-cnn export` writes; the message names the field.
    """
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError("source", folder, f"{CARD} cannot be read as JSON ({error})", _EXPORT_AGAIN) from error
    wrong = CARD
    if isinstance(found, dict) and set(found := {**_ADDED, **found}) | _OPTIONAL == set(_CHECKS):
        wrong = next((name for name in found if not _CHECKS[name](found[name])), "")
        if not wrong and set(found["sha256"]) != set(FILES[found["format"]]):
            wrong = f"sha256, which names {', '.join(found['sha256'])}"
    if wrong:
        raise UsageError("source", folder, f"{CARD} is not as lit-cnn export writes it ({wrong})", _EXPORT_AGAIN)
    return ModelCard(**found)


def read_files(folder: Path, card: ModelCard) -> dict[str, bytes]:
    """Returns the bytes of the model's files.

    Raises:
        UsageError: If one is missing, lies elsewhere by a link, or was changed after it was written.
    """
    contents = {}
    for name in FILES[card.format]:
        file = folder / name
        if file.resolve().parent != folder.resolve():
            raise UsageError("source", folder, f"{name} is a link out of the folder", "put the file itself there")
        try:
            contents[name] = file.read_bytes()
        except OSError as error:
            raise UsageError("source", folder, f"{name} cannot be read ({error.strerror})", _EXPORT_AGAIN) from error
        if hashlib.sha256(contents[name]).hexdigest() != card.sha256[name]:
            reason = f"{name} was changed after it was written (SHA-256 differs)"
            raise UsageError("source", folder, reason, _EXPORT_AGAIN)
    return contents


def load_graph(folder: Path) -> ImageClassifier:
    """Loads an export of the format `onnx` or `openvino`, to be run in float32 on the CPU.

    Raises:
        UsageError: If the folder is not as it was written, or the package that runs it is missing.
    """
    card = read_card(folder)
    if card.format not in _RUNNERS:
        reason = f"is of the format {card.format}"
        raise UsageError("source", folder, reason, f"give one of {', '.join(_RUNNERS)}")
    contents = read_files(folder, card)
    name, run_with = _RUNNERS[card.format]
    package = needed_package(name, "source", folder)
    try:
        run = run_with(package, *contents.values())
    except Exception as error:  # of onnxruntime's or OpenVINO's parser, each in its own way
        reason = f"its model cannot be read as {card.format} ({first_line(error)})"
        raise UsageError("source", folder, reason, _EXPORT_AGAIN) from error
    return probed(card.classifier(run), folder)


def probed(classifier: ImageClassifier, folder: Path) -> ImageClassifier:
    """Returns the classifier after it has classified one blank image.

    Raises:
        UsageError: If its network does not take the images, or does not know the classes, that `model.json` says.
    """
    shape = (1, classifier.in_channels, classifier.image_size, classifier.image_size)
    try:
        found = classifier.probabilities(np.zeros(shape, np.uint8))
    except Exception as error:  # of whatever runs the network, each in its own way
        reason = f"its network does not take the images of {CARD} ({first_line(error)})"
        raise UsageError("source", folder, reason, _EXPORT_AGAIN) from error
    if found.shape != (1, len(classifier.class_names)) or not np.isfinite(found).all():
        raise UsageError("source", folder, f"its network does not predict the classes of {CARD}", _EXPORT_AGAIN)
    return classifier


def needed_package(name: str, option: str, value: Any) -> Any:
    """Imports a package of the extra `export`.

    Args:
        name: The package.
        option: The argument that needs it, for the message.
        value: Its value.

    Raises:
        UsageError: If it is not installed.
    """
    if name == "openvino":
        # It would report every import to its maker; without this package of its own it does not.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"needs {name}, which is not installed"
        raise UsageError(option, value, reason, "pip install 'lit-cnn[export]'") from error


def first_line(error: Exception) -> str:
    """Returns the first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _run_onnx(onnxruntime: Any, content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    # From memory: what was checked is what is run, and no other file can be named.
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (probabilities,) = session.run([OUTPUT], {INPUT: images})
        return probabilities

    return run


def _run_openvino(openvino: Any, graph: bytes, weights: bytes) -> Callable[[np.ndarray], np.ndarray]:
    core = openvino.Core()
    tensor = openvino.Tensor(np.frombuffer(weights, np.uint8).copy())
    model = core.read_model(graph.decode(), tensor)
    # By default it computes in bfloat16 where the CPU does; evaluation is in float32 everywhere.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({INPUT: images})[OUTPUT]


_RUNNERS: Mapping[str, tuple[str, Callable[..., Callable[[np.ndarray], np.ndarray]]]] = MappingProxyType(
    {"onnx": ("onnxruntime", _run_onnx), "openvino": ("openvino", _run_openvino)}
)
"""Format -> the package that runs it, and how."""


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _is_range(value: Any) -> bool:
    are_numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(each, float) for each in value)
    return are_numbers and all(map(math.isfinite, value)) and value[0] < value[1]


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(each) is int and 0 <= each <= 255 for each in value)


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(re.fullmatch(r"[0-9a-f]{64}", str(digest)) for digest in value.values())


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "schema": lambda value: value == SCHEMA_VERSION,
        "format": lambda value: value in tuple(FILES),
        "class_names": _are_names,
        "image_size": lambda value: _is_count(value, _LARGEST_IMAGE),
        "in_channels": lambda value: value in (1, 3),
        "interpolation": lambda value: value in ("area", "bilinear", "bicubic"),
        "views": lambda value: value in (1, 2),
        "temperature": _is_positive,
        "combine": lambda value: value in ("mean", "logits"),
        "members": lambda value: isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) for m in value),
        "versions": lambda value: isinstance(value, dict),
        "parity": lambda value: isinstance(value, dict),
        "sha256": _are_digests,
        "crop_pct": lambda value: _is_positive(value) and value <= 1,
        "pixel_range": _is_range,
        "background": _is_colour,
        "max_pixels": lambda value: _is_count(value, sys.maxsize),
    }
)
"""What each field of `model.json` has to be."""

_ADDED: Mapping[str, Any] = MappingProxyType({"crop_pct": 1.0})
"""Fields that an export of an earlier version lacks -> what they are there."""
_OPTIONAL = {"pixel_range", "background", "max_pixels"}
"""Fields that are left out where they are None, as they are in an export of before there were any."""
