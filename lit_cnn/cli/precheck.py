"""What the arguments alone tell, told at once: option names, whole numbers and files, before torch is imported.

The names of the options are read from the sources' syntax trees, so they cannot drift from what the parser takes;
importing the same modules takes seconds. What passes here is parsed in full afterwards.
"""

import ast
import difflib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from lit_cnn.core.errors import UsageError

_PACKAGE = Path(__file__).parent.parent
# Least values of whole-number options; the data module checks them again, where they are used.
_LEAST = {
    "data.batch_size": 1,
    "data.image_size": 1,
    "data.num_workers": 0,
    "data.limit_train": 1,
    "data.max_pixels": 1,
}


def precheck(arguments: Sequence[str]) -> None:
    """Refuses arguments of fit, validate or test that cannot be right.

    Args:
        arguments: What follows the subcommand.

    Raises:
        UsageError: If an option is not known, a number is not one, or a configuration file is not there.
    """
    known = known_options()
    for name, value in _pairs(arguments):
        if name == "config":
            if value is not None:
                _check_config_file(Path(value))
        elif not _is_known(name, known):
            near = difflib.get_close_matches(name, known, 3, 0.6)
            hint = f"did you mean {', '.join(f'--{option}' for option in near)}?" if near else "see lit-cnn fit --help"
            raise UsageError(f"--{name} {value or ''}: no such option; {hint}")
        elif name in _LEAST and value not in (None, "null"):
            _check_whole_number(name, value, _LEAST[name])
    _check_root(arguments)


def take_seeds(arguments: list[str]) -> tuple[list[int] | None, list[str]]:
    """Takes `--seeds 0 1 2` out of the arguments; returns the seeds, or None, and the rest.

    Raises:
        UsageError: If what follows is not one or more different whole numbers.
    """
    if "--seeds" not in arguments:
        return None, arguments
    start = arguments.index("--seeds")
    end = start + 1
    while end < len(arguments) and not arguments[end].startswith("-"):
        end += 1
    given = arguments[start + 1 : end]
    if not given or not all(seed.isdigit() for seed in given) or len(set(given)) < len(given):
        raise UsageError(f"--seeds {' '.join(given)}: give one or more different whole numbers, such as --seeds 0 1 2")
    return [int(seed) for seed in given], arguments[:start] + arguments[end:]


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """Returns the last value that the arguments give an option, None if they do not."""
    return ([None] + [value for name, value in _pairs(arguments) if name == option])[-1]


@functools.cache
def known_options() -> frozenset[str]:
    """Returns the names of all options of fit, validate and test, such as `data.batch_size`."""
    lightning = importlib.util.find_spec("lightning")
    assert lightning is not None and lightning.origin is not None
    trainer = Path(lightning.origin).parent / "pytorch" / "trainer" / "trainer.py"
    names = {"config", "c", "help", "h", "print_config", "seed_everything", "trainer", "model", "data", "ckpt_path"}
    for section, file, class_name in (
        ("trainer", trainer, "Trainer"),
        ("model", _PACKAGE / "training" / "classifier.py", "LitClassifier"),
        ("model", _PACKAGE / "training" / "distillation.py", "Distillation"),
        ("data", _PACKAGE / "data" / "datamodule.py", "ImageDataModule"),
    ):
        names |= {f"{section}.{name}" for name in _init_arguments(file, class_name)}
    names |= set(_added_options(Path(__file__).parent / "lit_cli.py"))
    names |= set(_fields(_PACKAGE / "training" / "run_options.py", "RunOptions"))
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


def _check_config_file(path: Path) -> None:
    # The parser would not say which file it is that it cannot read.
    if not path.is_file():
        raise UsageError(f"--config {path}: no such file; the ready ones are in configs/experiment/")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: is no YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"--config {path}: holds no options; give lines such as 'trainer:' and '  max_epochs: 10'")


def _check_whole_number(name: str, value: str, least: int) -> None:
    try:
        number = int(value)
    except ValueError:
        raise UsageError(f"--{name} {value}: give a whole number of at least {least}") from None
    if number < least:
        raise UsageError(f"--{name} {value}: give a whole number of at least {least}")


def _check_root(arguments: Sequence[str]) -> None:
    for name, value in _pairs(arguments):
        # Braces stand for several shards of a webdataset.
        if name != "data.root" or value in (None, "null") or "{" in str(value):
            continue
        if not Path(value).expanduser().exists():
            raise UsageError(f"--data.root {value}: no such folder or file; give the folder of your images")


def _init_arguments(file: Path, class_name: str) -> list[str]:
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    (wanted,) = [node for node in classes if node.name == class_name]
    (init,) = [node for node in wanted.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)][1:]


def _fields(file: Path, class_name: str) -> list[str]:
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    (wanted,) = [node for node in classes if node.name == class_name]
    return [
        node.target.id for node in wanted.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _added_options(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            option = node.args[0]
            if isinstance(option, ast.Constant):
                yield str(option.value).lstrip("-")
