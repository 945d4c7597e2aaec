"""The house: a module imports those above it, files stay small, what is public is annotated and documented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent

# The house, from top to bottom: a room imports those above it. Inside a room modules import each other in no circle.
ROOMS = [
    "core",
    "portable",
    "data",
    "models",
    "reports",
    "tracking",
    "training",
    "evaluation",
    "exports",
    "search",
    "cli",
]


def module_name(path: Path) -> str:
    """`lit_cnn/cli/train.py` -> `cli.train`; `lit_cnn/cli/__init__.py` -> `cli`."""
    parts = path.relative_to(REPO_ROOT / "lit_cnn").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted((REPO_ROOT / "lit_cnn").rglob("*.py"))}
every_module = pytest.mark.parametrize("module", SOURCES)


def imported_names(source: str, package: str) -> Iterator[str]:
    """Every absolute dotted name that the source imports, at any depth; `package` is what `.` stands for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """`data.sources.idx` -> `data`; "" for `lit_cnn/__init__.py`, `__main__` for itself."""
    return name.partition(".")[0]


def wrong_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the source of `lit_cnn.<module>` imports from rooms below its own, and mlflow outside of tracking."""
    package = f"lit_cnn.{module}" if is_package else f"lit_cnn.{module}".rpartition(".")[0]
    here, wrong = room_of(module), []
    for name in imported_names(source, package.rstrip(".")):
        root, _, rest = name.partition(".")
        there = room_of(rest)
        if root == "mlflow" and here != "tracking":
            wrong.append(name)
        if root == "lit_cnn" and there in ROOMS and here in ROOMS and ROOMS.index(there) > ROOMS.index(here):
            wrong.append(name)
    return wrong


def circles(imports: dict[str, set[str]]) -> list[str]:
    """What is left of a graph, module -> modules that it imports, when all that imports nothing is taken away."""
    left = dict(imports)
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def imports_of(module: str) -> set[str]:
    """The modules of lit_cnn that one imports, itself and the package that it is in left out."""
    path = SOURCES[module]
    package = f"lit_cnn.{module}" if path.name == "__init__.py" else f"lit_cnn.{module}".rpartition(".")[0]
    found = set()
    for name in imported_names(path.read_text("utf-8"), package):
        root, _, rest = name.partition(".")
        while root == "lit_cnn" and rest and rest not in SOURCES:
            rest = rest.rpartition(".")[0]
        if root == "lit_cnn" and rest:
            found.add(rest)
    return found - {module}


def undocumented(source: str) -> list[str]:
    """The public classes and functions without a docstring, and the public functions not annotated throughout."""
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(f"{prefix}{node.name}: no docstring")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif not is_annotated(node, is_method=bool(prefix)):
                found.append(f"{prefix}{node.name}: not annotated")

    visit(ast.parse(source).body, "")
    return found


def is_annotated(function: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> bool:
    names = function.args
    given = [*names.posonlyargs, *names.args]
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in function.decorator_list)
    given = given[1:] if is_method and not static else given
    given += [*names.kwonlyargs, *(name for name in (names.vararg, names.kwarg) if name)]
    return function.returns is not None and all(argument.annotation for argument in given)


@every_module
def test_imports_point_up(module: str) -> None:
    path = SOURCES[module]
    assert room_of(module) in ("", "__main__", *ROOMS), f"lit_cnn.{module} is in none of the rooms"
    assert wrong_imports(path.read_text("utf-8"), module, path.name == "__init__.py") == []


def test_there_is_no_circle() -> None:
    assert circles({module: imports_of(module) for module in SOURCES}) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@every_module
def test_no_file_is_over_400_lines(module: str) -> None:
    num_lines = SOURCES[module].read_text("utf-8").count("\n")
    assert num_lines <= 400


@every_module
def test_what_is_public_is_annotated_and_documented(module: str) -> None:
    source = SOURCES[module].read_text("utf-8")
    assert ast.get_docstring(ast.parse(source)), "no docstring of the module"
    assert undocumented(source) == []


def test_the_whole_package_is_looked_at() -> None:
    assert {"", "core.errors", "models", "models.lenet", "tracking.store", "__main__"} <= SOURCES.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.files", "import lit_cnn.data.sources"),
        ("core.files", "from lit_cnn import data"),
        ("core.files", "from lit_cnn.data.sources import load"),
        ("core.files", "from .. import data"),
        ("core.files", "from ..data.sources import load"),
        ("models.lenet", "from ..training.classifier import LitClassifier"),
        ("data.datamodule", "def late():\n    from lit_cnn.models.lenet import LeNet5"),
        ("data.datamodule", "if TYPE_CHECKING:\n    from lit_cnn.tracking.store import Store"),
        ("training.classifier", "import mlflow"),
        ("cli.verbs", "def late():\n    from mlflow.tracking import MlflowClient"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.lit_cli", "from lit_cnn import __version__\nfrom lit_cnn.cli.parser import OneLineParser\nimport torch"),
        (
            "evaluation.ensemble",
            "from lit_cnn.evaluation.table import write\nimport lit_cnn.core.files",
        ),
        ("tracking.sender", "import mlflow\nfrom lit_cnn.tracking.store import Store\nfrom . import names"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert wrong_imports(source, module) == []


def test_a_package_finds_its_own_relative_imports() -> None:
    assert wrong_imports("from ..cli import main\nfrom .store import Store", "tracking", is_package=True) == [
        "lit_cnn.cli.main"
    ]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(x: int) -> int:\n    return x", "f: no docstring"),
        ('def f(x) -> int:\n    """Doc."""', "f: not annotated"),
        ('def f(*, x: int):\n    """Doc."""', "f: not annotated"),
        ('class A:\n    """Doc."""\n    def f(self, *x) -> None:\n        """Doc."""', "A.f: not annotated"),
        ("class A:\n    def _f(self): ...", "A: no docstring"),
    ],
)
def test_what_is_undocumented_is_found(source: str, found: str) -> None:
    assert undocumented(source) == [found]


@every_module
def test_a_mistake_says_which_argument_and_never_with_dashes(module: str) -> None:
    """The command line alone knows how options are spelt."""
    source = SOURCES[module].read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UsageError":
            given = {keyword.arg for keyword in node.keywords}
            assert len(node.args) >= 3 or given & {"reason", "message"}, ast.get_source_segment(source, node)
            texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            dashed = [text for text in texts if isinstance(text, str) and re.search(r"(?<![\w-])--[a-z]", text)]
            assert room_of(module) == "cli" or all("lit-cnn " in text for text in dashed), dashed
