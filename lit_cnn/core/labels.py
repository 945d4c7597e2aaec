"""What a run is called among others: what differs, and nothing else, in a few words."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lit_cnn.core.run_params import decides

SEPARATOR = " · "

DEFAULTS: dict[str, Any] = {
    "model.arch": "lenet5",
    "model.train_stages": 1,
    "model.unfreeze_every": 1,
    "model.head": "linear",
    "model.feature_cache": "bf16",
    "model.head_solver": "sgd",
    "model.optimizer": "adamw",
    "model.lr": 0.001,
    "model.weight_decay": 0.05,
    "model.layer_decay": 1.0,
    "model.head_lr_factor": 1.0,
    "model.schedule": "one_cycle",
    "model.warmup_fraction": 0.25,
    "model.label_smoothing": 0.0,
    "model.mixup": 0.0,
    "model.cutmix": 0.0,
    "model.temperature": 4.0,
    "model.alpha": 0.9,
    "data.batch_size": 128,
    "data.sampler": "shuffled",
    "data.train_crop": "center",
    "data.split_seed": 0,
    "data.val_fraction": 0.1,
    "data.test_fraction": 0.2,
    "data.prepared": "auto",
    "data.reduced_decode": False,
    "trainer.max_epochs": 10,
    "trainer.accumulate_grad_batches": 1,
    "trainer.max_steps": -1,
    "monitor": "val/acc",
    "seed_everything": 0,
}
"""What a param is where a run has none of this name, or nobody asked for another value."""

_SIZE, _AUGMENT, _LIMIT = "data.image_size", "data.augment", "data.limit_train"
_WEIGHTS = "model.weights"
SEED = "seed_everything"
"""The param that has the training seed."""

_WORDS: dict[str, Callable[[str], str]] = {
    "model.arch": lambda value: value.rpartition("/")[2],
    "model.transfer": str,
    _SIZE: lambda value: f"{value} px",
    "recipe": str,
    "model.train_stages": lambda value: f"{value} stage{'' if value == '1' else 's'}",
    "model.teachers": lambda value: "student",
    _WEIGHTS: lambda value: f"weights {value[:14] if value.startswith('runs:/') else Path(value).name}",
    _LIMIT: lambda value: f"{int(value):,} training images" if value.isdigit() else f"{value} training images",
    _AUGMENT: lambda value: f"augment {value}",
    "data.train_crop": lambda value: f"{value.replace('_', ' ')} crop",
    "model.mixup": lambda value: f"mixup {value}",
    "model.cutmix": lambda value: f"cutmix {value}",
    "ema_decay": lambda value: f"ema {value}",
    "swa_start": lambda value: f"swa from epoch {value}",
    "model.optimizer": str,
    "model.lr": lambda value: f"lr {value}",
    "data.batch_size": lambda value: f"batch {value}",
    "trainer.max_epochs": lambda value: f"{value} epoch{'' if value == '1' else 's'}",
    "trainer.accumulate_grad_batches": lambda value: f"{value} batches a step",
    "trainer.gradient_clip_val": lambda value: f"clip {value}",
    "model.head": lambda value: f"{value} head",
    "model.schedule": str,
    "data.views": lambda value: f"{value} views",
    "model.cycles": lambda value: f"{value} cycles",
    "data.sampler": lambda value: f"{value} classes" if value == "balanced" else value,
    "data.num_folds": lambda value: f"{value} folds",
    "data.fold": lambda value: f"fold {value}",
    "data.fold_seed": lambda value: f"folds of seed {value.strip('[]')}",
    SEED: lambda value: f"seed{'s' if value.startswith('[') else ''} {value.strip('[]')}",
}
"""What is said of a param's value, in the order in which it is said. Of others: `layer decay 0.8`."""

_FOLDS = ("data.num_folds", "data.fold", "data.fold_seed")
_MAIN = ("model.arch", "model.transfer", _SIZE, "recipe", "model.teachers", _LIMIT, *_FOLDS, SEED)
_OF_ITSELF = ("model.arch", "model.transfer", _SIZE)
_HIDDEN = (
    *(_WEIGHTS, "feature_cache", "model.feature_cache", "monitor_mode", "continued"),
    *("data.check", "data.dataset", "data.max_pixels", "data.on_bad_image", "data.outside_root", "data.split_scheme"),
)
"""What is named only if nothing else tells two runs apart."""
_MOST_UNUSUAL = 4
_ZERO_IS_OFF = ("model.mixup", "model.cutmix", "model.label_smoothing")
_LONGEST = 28  # letters of a value
_OFF = ("None", "", "False", "[]", "{}")

Params = Mapping[str, Any]


def label_of(params: Params) -> str:
    """Returns what one run is called by itself: `tf_efficientnet_lite0 · head_only · 224 px · seed 2`.

    Network, regime, image size; then what is neither a default nor set by the ready configurations of this network,
    regime and data set, four such things at most; then the seed.

    Args:
        params: The run's parameters as they are recorded: `model.arch`, `data.image_size`; values or their texts, of
            any version.
    """
    run = _known(params)
    said = [_words(name, run[name]) for name in _OF_ITSELF if name in run]
    unusual = [
        _words(name, run[name]) or f"no {_name(name)}"
        for name in _ordered(run)
        if name not in (*_OF_ITSELF, SEED) and not _is_hidden(name) and _is_unusual(name, run)
    ]
    more = ["…"] if len(unusual) > _MOST_UNUSUAL else []
    seed = [_words(SEED, run[SEED])] if SEED in run else []
    return SEPARATOR.join([*said, *unusual[:_MOST_UNUSUAL], *more, *seed])


def labels_of(params: Sequence[Params]) -> list[str]:
    """Returns what several runs are called next to each other: what differs and nothing else, `head_only · seed 2`.

    Network, regime, image size, recipe, number of images, augmentation and seed are named wherever they differ;
    settings that come with a network or regime, such as the learning rate, where somebody chose another value and gave
    it no name as a recipe, or nothing else tells two runs apart. Runs that differ in nothing have the same label.

    Args:
        params: Those of each run; see `label_of`.
    """
    runs = [_known(of_run) for of_run in params]
    names = list(dict.fromkeys(name for run in runs for name in run))
    differing = [name for name in _ordered(names) if len({run.get(name) for run in runs}) > 1]
    if not differing:
        return [label_of(of_run) for of_run in params]
    chosen = [
        name
        for name in differing
        if name in _MAIN or (name == _WEIGHTS and len({run[name] for run in runs if name in run}) > 1)
    ]
    if "recipe" not in chosen:  # a recipe is somebody's word for all that it changes
        own = [name for name in differing if name not in chosen and not _is_hidden(name)]
        chosen += [name for name in own if any(_is_unusual(name, run) for run in runs)][:_MOST_UNUSUAL]
    for name in differing:
        # What a version recorded that another one had not tells nothing of two runs.
        of_versions = _is_hidden(name) and any(name not in run for run in runs)
        if name not in chosen and not of_versions and _splits(name, chosen, runs):
            chosen.append(name)
    said = [[_words(name, run.get(name)) for name in _ordered(chosen)] for run in runs]
    without = f"no {', '.join(map(_name, _ordered(chosen)))}"
    return [SEPARATOR.join(dict.fromkeys(filter(None, words))) or without for words in said]


def shared_label(params: Sequence[Params]) -> str:
    """Returns what several runs have in common of network, regime, image size and recipe; perhaps nothing."""
    runs = [_known(of_run) for of_run in params]
    same = [name for name in (*_OF_ITSELF, "recipe") if runs[0].get(name) and len({run.get(name) for run in runs}) == 1]
    return SEPARATOR.join(_words(name, runs[0][name]) for name in same)


def augmentation_name(augment: Any) -> str:
    """Returns the name of a list of transforms.

    Args:
        augment: The list as in a configuration, or its text as MLflow has it.

    Returns:
        That of the file in `configs/augment/` or `configs/data/` with this list, else six hex digits of its SHA-256;
        `none` for no transform.
    """
    found = _canonical(_value(augment))
    return _named_lists().get(found) or hashlib.sha256(found.encode()).hexdigest()[:6]


def _known(params: Params) -> dict[str, str]:
    """Returns what has a say in the weights, as text, and what a version that had no such option did."""
    given = {name: value for name, value in params.items() if decides(name) and str(value) != "None"}
    run = {name: str(value) if name == "recipe" else _text(value) for name, value in given.items()}
    if size := run.get("data.weights_expect.image_size"):
        run.setdefault(_SIZE, size)
    run = {name: value for name, value in run.items() if not name.startswith("data.weights_expect.")}
    if "model.arch" in run:
        run["model.arch"] = run["model.arch"].rpartition("/")[2]
        run.setdefault("model.transfer", "full" if _WEIGHTS in run else "scratch")
    if run:
        run = {**{name: _text(value) for name, value in DEFAULTS.items() if name != SEED}, **run}
    if run.get("model.transfer") not in ("last_stages", "auto"):
        run.pop("model.train_stages", None)
    if run.get("model.transfer") != "gradual":
        run.pop("model.unfreeze_every", None)
    if "model.teachers" not in run:
        run = {name: value for name, value in run.items() if name not in ("model.temperature", "model.alpha")}
    if _AUGMENT in given:
        run[_AUGMENT] = augmentation_name(given[_AUGMENT])
        if run.get("data.train_crop") == _crops().get(run[_AUGMENT]):
            del run["data.train_crop"]  # the preset's name says it
    return run


def _is_unusual(name: str, run: Mapping[str, str]) -> bool:
    return name in run and run[name] not in _usual(name, run)


def _usual(name: str, run: Mapping[str, str]) -> list[str | None]:
    """Returns the values that a param has without anybody's asking: by regime, else network, else data set."""
    regime = run.get("model.transfer")
    layers = (
        [f"transfer/{regime}", *(["transfer/auto"] if regime != "scratch" else [])],
        [f"model/{run.get('model.arch')}"],
        [f"data/{run.get('data.dataset')}"],
    )
    for files in layers:
        if found := [_configs()[file][name] for file in files if name in _configs().get(file, {})]:
            return [augmentation_name(value) if name == _AUGMENT else _text(value) for value in found]
    return [_text(DEFAULTS[name])] if name in DEFAULTS else [None]


def _is_hidden(name: str) -> bool:
    return name.startswith(_HIDDEN) or not (name.startswith(("model.", "data.")) or name in (*_WORDS, *DEFAULTS))


def _splits(name: str, chosen: Sequence[str], runs: Sequence[Mapping[str, str]]) -> bool:
    """Whether a param tells two runs apart that those chosen before leave the same."""
    before = {tuple(run.get(each) for each in chosen) for run in runs}
    return len({tuple(run.get(each) for each in (*chosen, name)) for run in runs}) > len(before)


def _ordered(names: "Sequence[str] | Mapping[str, str]") -> list[str]:
    """Returns names as they are said: those with words of their own, then the others, the seed last."""
    places = {name: place for place, name in enumerate(_WORDS)}
    places[SEED] = len(places) + 1
    return sorted(names, key=lambda name: (places.get(name, len(_WORDS)), name.startswith(_HIDDEN), name))


def _words(name: str, value: str | None) -> str:
    """Returns what is said of a param; nothing of one that is off."""
    if value is None or value in _OFF or (name in _ZERO_IS_OFF and value == "0"):
        return "all training images" if name == _LIMIT else ""
    shown = value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
    return _WORDS[name](shown) if name in _WORDS else f"{_name(name)} {shown}"


def _name(name: str) -> str:
    if name == _FOLDS[0]:
        return "folds"
    return name.partition(".")[2].replace("arch_options.", "").replace("_", " ") or name.replace("_", " ")


def _text(value: Any) -> str:
    """Returns one text for a value and for what MLflow has made of it: 0.10 and 1e-1 are the same."""
    text = str(value)
    for number in (lambda: str(int(text)), lambda: f"{float(text):g}"):
        try:
            return number()
        except ValueError:
            continue
    return text


def _value(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return ast.literal_eval(given)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # cut, as a long one may be
        return given


def _canonical(augment: Any) -> str:
    """Returns a text that is the same however the list was written; classes count by their own names."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                str(name): str(of_name).rpartition(".")[2] if name == "class_path" else plain(of_name)
                for name, of_name in value.items()
                if of_name not in (None, {})
            }
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(augment or []), sort_keys=True, default=str)


@cache
def _named_lists() -> dict[str, str]:
    """Returns the names of the lists of the ready configurations; where two have the same, the augmentation's."""
    return {
        _canonical(options[_AUGMENT]): name.partition("/")[2]
        for section in ("data/", "augment/")
        for name, options in _configs().items()
        if name.startswith(section) and options.get(_AUGMENT) is not None
    }


@cache
def _crops() -> dict[str, str]:
    """Returns the crop of each augmentation of the ready configurations."""
    return {
        name.partition("/")[2]: options["data.train_crop"]
        for name, options in _configs().items()
        if name.startswith("augment/") and "data.train_crop" in options
    }


@cache
def _configs() -> dict[str, dict[str, Any]]:
    """Returns the ready configurations, flat, by what they are of: `model/ARCH`, `data/DATASET`, `transfer/REGIME`."""
    package = Path(__file__).parent.parent
    folder = next((each for each in (package / "configs", package.parent / "configs") if each.is_dir()), package)
    found: dict[str, dict[str, Any]] = {}
    for section in ("augment", "data", "model", "transfer"):
        for file in sorted(folder.glob(f"{section}/*.yaml")):
            config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            options = dict(_flat(config))
            before = f"{config.get('include', '')}"
            if before.startswith("transfer/"):
                options = {**dict(_flat(yaml.safe_load((folder / f"{before}.yaml").read_text("utf-8")))), **options}
            names = config.get("archs") or [options.get("data.dataset", file.stem) if section == "data" else file.stem]
            for name in names:
                found.setdefault(f"{section}/{name}", options)
    return found


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, options in config.items():
        if section in ("data", "model", "trainer"):
            yield from ((f"{section}.{name}", value) for name, value in options.items() if value is not None)
