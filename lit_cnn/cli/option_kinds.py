"""What values the options of fit, validate and test take, read from annotations in the sources' syntax trees."""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NOTHING = ("null", "Null", "NULL", "None", "~")
"""What stands for no value."""
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_BOOLEANS = ("true", "false", "yes", "no", "on", "off")
_FURTHEST = 10  # names after one another that stand for an annotation


@dataclass(frozen=True)
class Kind:
    """What an option takes.

    Attributes:
        choices: Words and numbers.
        types: Of `int`, `float`, `bool`.
        is_open: Whether it takes what is not told here, such as any text.
    """

    choices: tuple[str, ...]
    types: frozenset[str]
    is_open: bool
    may_be_null: bool

    def takes(self, text: str) -> bool:
        """Whether a value can be right."""
        text = text.strip()
        return (
            self.is_open
            or text in self.choices
            or (self.may_be_null and text in NOTHING)
            or ("int" in self.types and re.fullmatch(r"[+-]?\d[\d_]*|0[xob]\w+", text) is not None)
            or ("float" in self.types and _is_number(text.lower().replace(".inf", "inf")))
            or ("bool" in self.types and text.lower() in _BOOLEANS)
        )

    def in_words(self) -> str:
        """Returns what to give: `choose one of val/acc, val/loss` or `give a whole number`."""
        return what_to_give(self.choices, self.types, self.may_be_null)


def what_to_give(choices: Sequence[str], types: Sequence[str] | frozenset[str], may_be_null: bool) -> str:
    """Returns what to give for an option that takes these, in words.

    Args:
        choices: Words and numbers.
        types: Of `int`, `float`, `bool`.
        may_be_null: Whether null is for none.
    """
    words = [_WORDS[name] for name in _WORDS if name in types and not (name == "int" and "float" in types)]
    end = ["null"] if may_be_null else []
    if choices:
        return f"choose one of {', '.join([*choices, *words, *end])}"
    return f"give {', '.join([*words, *(['null for none'] if may_be_null else [])])}".replace(", null", ", or null")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@functools.cache
def option_kinds() -> dict[str, Kind]:
    """Returns what each option takes, by its name, such as `data.batch_size`."""
    trainer = _package("lightning") / "pytorch" / "trainer" / "trainer.py"
    kinds = {"find_batch_size": Kind((), frozenset({"bool"}), False, False)}
    for section, file, class_name in (
        ("trainer.", trainer, "Trainer"),
        ("model.", PACKAGE / "training" / "classifier.py", "LitClassifier"),
        ("model.", PACKAGE / "training" / "distillation.py", "Distillation"),
        ("data.", PACKAGE / "data" / "datamodule.py", "ImageDataModule"),
        ("", PACKAGE / "training" / "run_options.py", "RunOptions"),
    ):
        for name, annotation in arguments_of(file, class_name):
            kinds[f"{section}{name}"] = _kind(annotation, file)
    return kinds


def arguments_of(file: Path, class_name: str) -> Iterator[tuple[str, ast.expr | None]]:
    """Yields name and annotation of each argument of a class: its `__init__`'s, or a dataclass's fields."""
    (wanted,) = [each for each in _tree(file).body if isinstance(each, ast.ClassDef) and each.name == class_name]
    inits = [each for each in wanted.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    for init in inits:
        yield from ((each.arg, each.annotation) for each in (*init.args.args[1:], *init.args.kwonlyargs))
    for each in wanted.body if not inits else ():
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id, each.annotation


def _kind(annotation: ast.expr | None, file: Path) -> Kind:
    found = list(_members(annotation, file, _FURTHEST))
    return Kind(
        tuple(dict.fromkeys(value for kind, value in found if kind == "choice")),
        frozenset(value for kind, value in found if kind == "type"),
        any(kind == "open" for kind, _ in found),
        any(kind == "null" for kind, _ in found),
    )


def _members(node: ast.expr | None, file: Path, depth: int) -> Iterator[tuple[str, str]]:
    """Yields the members of a union: (choice, value), (type, name), (null, ""), or (open, "") for all others."""
    if isinstance(node, ast.BinOp):
        yield from _members(node.left, file, depth)
        yield from _members(node.right, file, depth)
    elif isinstance(node, ast.Constant) and node.value is None:
        yield "null", ""
    elif isinstance(node, ast.Name) and node.id in _WORDS:
        yield "type", node.id
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            yield from (("choice", str(each.value)) for each in inner if isinstance(each, ast.Constant))
        elif node.value.id in ("Optional", "Union"):
            for each in inner:
                yield from _members(each, file, depth)
            if node.value.id == "Optional":
                yield "null", ""
        else:
            yield "open", ""
    elif isinstance(node, ast.Name) and depth > 0 and (place := _defined(node.id, file)) is not None:
        yield from _members(*place, depth - 1)
    else:
        yield "open", ""


def _defined(name: str, file: Path) -> tuple[ast.expr, Path] | None:
    """Returns what a name in a file stands for, and in which file that is written; None if it is nothing such."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return node.value, file
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            module = _module_file(node.module or "")
            return _defined(name, module) if module is not None else None
    return None


def _module_file(module: str) -> Path | None:
    top, *parts = module.split(".")
    if top not in ("lit_cnn", "lightning"):
        return None
    place = _package(top).joinpath(*parts)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.cache
def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
