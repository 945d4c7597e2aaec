"""What the arguments alone tell, told at once: option names, whole numbers and files, before torch is imported.

The names of the options are read from the sources' syntax trees, so they cannot drift from what the parser takes;
importing the same modules takes seconds. What passes here is parsed in full afterwards.
"""

import ast
import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_cnn.cli.configs import SECTIONS, Layer, split_arguments
from lit_cnn.cli.option_kinds import NOTHING, option_kinds
from lit_cnn.cli.shorthand import chosen, expand
from lit_cnn.core.addresses import is_address
from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.environment import says_one_of_several
from lit_cnn.core.errors import UsageError
from lit_cnn.data.linked import LINKED_FROM_DATA

# Least values of whole-number options; the data module checks them again, where they are used.
_LEAST = {
    "data.batch_size": 1,
    "data.image_size": 1,
    "data.num_workers": 0,
    "data.limit_train": 1,
    "data.max_pixels": 1,
}

# What other libraries call an option.
_IN_OTHER_WORDS = {
    "trainer.max_epochs": "epoch epochs n_epochs num_epochs num_train_epochs",
    "trainer.max_steps": "steps iterations num_steps",
    "trainer.accelerator": "gpu gpus cuda cpu device",
    "trainer.devices": "gpus num_gpus",
    "trainer.precision": "amp fp16 bf16 half",
    "model.arch": "net network backbone model_name architecture",
    "model.weights": "pretrain pretrained checkpoint init",
    "model.transfer": "freeze finetune fine_tune regime",
    "model.lr": "learning_rate learningrate lr0 base_lr",
    "model.weight_decay": "wd decay",
    "model.optimizer": "opt optim",
    "model.schedule": "scheduler lr_scheduler",
    "data.root": "folder path dir data_dir data_path images input",
    "data.image_size": "img_size imgsz imagesize input_size resolution size",
    "data.batch_size": "bs batch batchsize train_batch_size",
    "data.num_workers": "workers num_worker n_workers",
    "data.augment": "aug augmentation augmentations transforms",
    "seed_everything": "seed random_seed random_state",
    "recipe": "name run_name tag",
    "experiment": "project experiment_name",
}

_HINT = (
    "No folder is given: this is a run on scikit-learn's digits.\n"
    "On photographs of your own: lit-cnn fit FOLDER, with a sub-folder for each class."
)


def precheck(arguments: Sequence[str], also: Sequence[str] = (), is_typed: bool = True) -> None:
    """Refuses arguments of fit, validate or test that cannot be right.

    Args:
        arguments: What follows the subcommand.
        also: Options that the command has besides, `--strict` say, for who has misspelt one.
        is_typed: Whether somebody has typed them.

    Raises:
        UsageError: If an option is not known, a number is not one, or a configuration is not there or has an option
            that is not known.
    """
    known = known_options()
    layers, options = split_arguments(arguments)
    for layer in layers:
        _check_names_in(layer, known)
    for name, value in _pairs(options):
        if not _is_known(name, known):
            # As it was typed: another one may be called so in Python.
            typed = f"{'-' * min(2, len(name))}{name} {value or ''}".strip()
            option, given = (None, typed) if is_typed else (name, value)
            raise UsageError(option, given, "no such option", hint(name, known, "`", also))
        if name in _LEAST and value is not None and value not in NOTHING:
            _check_whole_number(name, value, _LEAST[name])
        kind = option_kinds().get(name)
        if kind is not None and value is not None and not kind.takes(value):
            raise UsageError(name, value, kind.in_words())
    if not says_one_of_several():  # else another host may have the folder, and is to hear of it
        _check_root(options)


def arguments_of_trials(
    command: str, arguments: Sequence[str], also: Sequence[str], is_typed: bool = True
) -> list[str]:
    """Returns arguments of `lit-cnn fit` for trials, a folder spelt out; refuses what cannot be right.

    Args:
        command: Which trains the trials.
        arguments: Those that are not the command's own.
        also: Options of the command itself.
        is_typed: Whether somebody has typed them.

    Raises:
        UsageError: As `precheck`, or if the trials would not be tracked.
    """
    of_fit = expand(command, arguments) if is_typed else list(arguments)
    precheck(of_fit, also, is_typed)
    given = value_of(of_fit, "track")
    if (given or "true").lower() == "false":
        raise UsageError("track", given, "every trial is a tracked run", "leave it out")
    return of_fit


def take_seeds(arguments: list[str], option: str = "seeds") -> tuple[list[int] | None, list[str]]:
    """Takes `--seeds 0 1 2` out of the arguments; returns the seeds, or None, and the rest.

    Args:
        arguments: Of the command line.
        option: `seeds`, or another that takes the like.

    Raises:
        UsageError: If what follows is not one or more different whole numbers.
    """
    given, rest = _take(arguments, option)
    if given is None:
        return None, arguments
    if not given or not all(seed.isdigit() for seed in given) or len(set(given)) < len(given):
        raise UsageError(option, given, f"give one or more different whole numbers, such as `{option}=0 1 2`")
    return [int(seed) for seed in given], rest


def take_folds(arguments: list[str]) -> tuple[int | None, list[int] | None, list[str]]:
    """Takes `--folds 5` and `--split_seeds 0 1 2` out of the arguments; returns both, None if not given, and the rest.

    Raises:
        UsageError: If what follows is no such number, or folds are to be cut anew where there are none.
    """
    split_seeds, arguments = take_seeds(arguments, "split_seeds")
    given, rest = _take(arguments, "folds", most=1)
    if given is None:
        if split_seeds is not None:
            raise UsageError("split_seeds", split_seeds, "cuts folds anew", "give `folds=5` too")
        return None, None, arguments
    if not given or not given[0].isdigit() or int(given[0]) < 2:
        raise UsageError("folds", given, "give a whole number of at least 2")
    check_no_fold_given(rest)
    return int(given[0]), split_seeds, rest


def check_no_fold_given(arguments: Sequence[str]) -> None:
    """Refuses options of `lit-cnn fit` that choose one fold, where all are trained on.

    Raises:
        UsageError: With the option.
    """
    for name, value in _pairs(arguments):
        if name in ("data.num_folds", "data.fold"):
            raise UsageError(name.partition(".")[2], value, "is chosen by `folds`, fold after fold", "leave it out")


def take_engine(arguments: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Takes `--engine ray` and `--address HOST:PORT` out of the arguments; returns both, and the rest.

    Raises:
        UsageError: If the engine is another one, or there is an address without it.
    """
    engine, arguments = _take(arguments, "engine", most=1)
    address, rest = _take(arguments, "address", most=1)
    if engine is not None and engine != ["ray"]:
        raise UsageError("engine", engine or None, "give ray, or leave it out")
    if address is not None and engine is None:
        raise UsageError("address", address, "is that of a Ray cluster", "give `engine=ray` too")
    if address == []:
        raise UsageError("address", None, "give HOST:PORT of the cluster's head, or auto")
    return (None if engine is None else engine[0]), (None if address is None else address[0]), rest


def _take(arguments: list[str], option: str, most: int | None = None) -> tuple[list[str] | None, list[str]]:
    """Returns the values of an option that takes several, None if it is not there, and the other arguments."""
    for start, text in enumerate(arguments):
        name, equals, value = text.partition("=")
        if name == f"--{option}":
            end = start + 1
            while not equals and end < len(arguments) and _may_be_seed(arguments[end]) and end - start - 1 != most:
                end += 1
            given = value.split() if equals else arguments[start + 1 : end]
            return given, arguments[:start] + arguments[end:]
    return None, arguments


def _may_be_seed(text: str) -> bool:
    # Digits are a seed though a folder of a class is called so; what is there, else, is the folder of the images.
    return text.isdigit() or not (text.startswith("-") or Path(text).exists())


def starting_line(arguments: Sequence[str], seeds: Sequence[int] | None, folds: int | None = None) -> str:
    """Returns what is about to start, for who waits until PyTorch and Lightning are imported.

    Args:
        arguments: Of `lit-cnn fit`, a folder spelt out.
        seeds: Of `--seeds`.
        folds: Of `--folds`.
    """
    layers, options = split_arguments(arguments)
    given = value_of(options, "ckpt_path")
    if given not in (None, "last") and not any(text.startswith("--config") for text in arguments):
        return f"starting from {given} …"  # which has the configuration
    one_seed = value_of(options, "seed_everything") or "0"
    of_seeds = f"seeds {' '.join(map(str, seeds))}" if seeds is not None else f"seed {one_seed}"
    of_seeds = f"{folds} folds, {of_seeds}" if folds is not None else of_seeds
    arch = chosen(layers, options, "model", "arch", default="lenet5")
    hint = "" if chosen(layers, options, "data", "dataset") else f"\n{_HINT}"
    return f"starting {arch} on {images_named(arguments)}, {of_seeds} …{hint}"


def images_named(arguments: Sequence[str]) -> str:
    """Returns what images the arguments of `lit-cnn fit` name, a folder spelt out."""
    layers, options = split_arguments(arguments)
    named = (chosen(layers, options, "data", name) for name in ("root", "dataset"))
    return without_credentials(str(next(filter(None, named), "digits")))


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """Returns the last value that the arguments give an option, None if they do not."""
    return ([None] + [value for name, value in _pairs(arguments) if name == option])[-1]


def without(option: str, arguments: Sequence[str]) -> list[str]:
    """Returns arguments without an option and its value."""
    found, skips = list[str](), False
    for text in arguments:
        if skips:
            skips = False
        elif text == f"--{option}":
            skips = True
        elif not text.startswith(f"--{option}="):
            found.append(text)
    return found


@functools.cache
def known_options() -> frozenset[str]:
    """Returns the names of all options of fit, validate and test, such as `data.batch_size`."""
    names = {"config", "c", "help", "h", "print_config", "seed_everything", "trainer", "model", "data", "ckpt_path"}
    names |= option_kinds().keys()
    names -= {"data.seed", "model.seed", *(f"model.{name}" for name in LINKED_FROM_DATA)}
    names |= set(_added_options(Path(__file__).parent / "lit_cli.py"))
    return frozenset(names)


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields (option, value) of `--option value` and `--option=value`; the value is None where there is none."""
    for place, text in enumerate(arguments):
        if not text.startswith("-") or text.lstrip("-")[:1].isdigit():
            continue
        name, equals, value = text.lstrip("-").partition("=")
        following = arguments[place + 1] if place + 1 < len(arguments) else None
        yield name.rstrip("+:"), value if equals else following


def _is_known(name: str, known: frozenset[str]) -> bool:
    # What lies below an option (--trainer.logger.init_args.x, --model.arch_options.y) is the parser's to judge.
    parts = name.split(".")
    return any(".".join(parts[:length]) in known for length in range(min(2, len(parts)), len(parts) + 1))


def _check_names_in(layer: Layer, known: frozenset[str]) -> None:
    # The parser would not say in which file the mistake is.
    for section, options in layer.options.items():
        names = [f"{section}.{name}" for name in options] if isinstance(options, dict) and section in SECTIONS else []
        for name in [str(section), *names]:
            if not _is_known(name.removesuffix("+"), known):
                raise UsageError("config", layer.file, f"{name}: no such option", hint(name, known, ""))


def hint(name: str, known: frozenset[str], quote: str, also: Sequence[str] = ()) -> str:
    """Returns which option may have been meant.

    Args:
        name: What was given.
        known: The options that there are.
        quote: What stands around each of them.
        also: Options of the command besides.
    """
    last = name.rpartition(".")[2].replace("-", "_").lower()
    meant = sorted(option for option in known if option.rpartition(".")[2] == last)
    meant = meant or [option for option, words in _IN_OTHER_WORDS.items() if last in words.split()]
    own = difflib.get_close_matches(f"--{name}", also, 1, 0.7)
    near = [*meant, *own] or difflib.get_close_matches(name.replace("-", "_"), known, 3, 0.6)
    quoted = ", ".join(option if option in also else f"{quote}{option}{quote}" for option in near)
    return f"did you mean {quoted}?" if near else "see lit-cnn fit --help"


def _check_whole_number(name: str, value: str, least: int) -> None:
    if not re.fullmatch(r"[+-]?\d+(_\d+)*", value.strip()) or int(value) < least:
        raise UsageError(name, value, f"give a whole number of at least {least}")


def _check_root(arguments: Sequence[str]) -> None:
    for name, value in _pairs(arguments):
        # Braces stand for several shards of a webdataset.
        if name != "data.root" or value in (None, "null") or "{" in str(value) or is_address(value):
            continue
        if not Path(value).expanduser().exists():
            raise UsageError(name, value, "no such folder or file", "give the folder of your images")


def _added_options(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            option = node.args[0]
            if isinstance(option, ast.Constant):
                yield str(option.value).lstrip("-")
