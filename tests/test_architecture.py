"""The house: a module imports those above it, files stay small, what is public is annotated and documented."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent

# From top to bottom, without the leading `lit_cnn.`. The modules of a package share its place and may import each
# other, unless they are listed one by one. Some are still to be written.
ORDER = [
    "",  # lit_cnn/__init__.py
    "errors",
    "words",
    "files",
    "memory",
    "file_hashes",
    "randomness",
    "precision",
    "datasets",
    "splits",
    "pixel_statistics",
    "pca_color",
    "transforms",
    "batch_transforms",
    "sampling",
    "batches",
    "datamodule",
    "preview",
    "audit",
    "contact_sheet",
    "models",
    "exported",
    "tracking",
    "checkpoints",
    "weights",
    "transfer",
    "feature_store",
    "garbage",
    "feature_cache",
    "mixing",
    "optimization",
    "metrics",
    "classifier",
    "averaging",
    "whitening",
    "callbacks",
    "fit_progress",
    "snapshots",
    "evaluation.statistics",
    "evaluation.advice",
    "evaluation.calibration",
    "evaluation.multi_crop",
    "evaluation.combining",
    "evaluation.mistakes",
    "evaluation.activation",
    "evaluation.cost",
    "evaluation.members",
    "evaluation.stored_logits",
    "evaluation.predictions",
    "evaluation.folder_predictions",
    "evaluation.soup",
    "evaluation.pair",
    "evaluation.leaderboard",
    "evaluation.report",
    "evaluation.comparison",
    "evaluation.ensemble",
    "evaluation.compare",
    "evaluation",
    "distillation",
    "export",
    "cli",
    "__main__",
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


def place(name: str) -> int | None:
    """The position of a dotted name in ORDER: its own, else that of the nearest package around it."""
    while name not in ORDER:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return ORDER.index(name)


def wrong_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the source of `lit_cnn.<module>` imports from below its own place, and mlflow outside of tracking."""
    package = f"lit_cnn.{module}" if is_package else f"lit_cnn.{module}".rpartition(".")[0]
    here, wrong = place(module), []
    assert here is not None, f"lit_cnn.{module} has no place in ORDER: give it one"
    for name in imported_names(source, package.rstrip(".")):
        root, _, rest = name.partition(".")
        if root == "mlflow" and module.split(".")[0] != "tracking":
            wrong.append(name)
        there = place(rest) if root == "lit_cnn" else None
        if there is not None and there > here:
            wrong.append(name)
    return wrong


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
    assert wrong_imports(path.read_text("utf-8"), module, path.name == "__init__.py") == []


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
    assert {"", "errors", "models", "models.lenet", "tracking.store", "__main__"} <= SOURCES.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("files", "import lit_cnn.datasets"),
        ("files", "from lit_cnn import datasets"),
        ("files", "from lit_cnn.datasets import load"),
        ("files", "from . import datasets"),
        ("files", "from .datasets import load"),
        ("models.lenet", "from ..classifier import LitClassifier"),
        ("datamodule", "def late():\n    from lit_cnn.models.lenet import LeNet5"),
        ("datamodule", "if TYPE_CHECKING:\n    from lit_cnn.tracking.store import Store"),
        ("evaluation.report", "from lit_cnn.evaluation import ensemble"),
        ("evaluation.report", "from lit_cnn.evaluation.ensemble import ensemble_runs"),
        ("evaluation.statistics", "from lit_cnn.evaluation.new import anything"),
        ("classifier", "import mlflow"),
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
            "from lit_cnn.evaluation.report import write\nfrom lit_cnn.evaluation import statistics",
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
