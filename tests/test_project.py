"""The project's own files: portable, pinned, and in step with each other."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Written so that this file does not match itself.
FOREIGN = {
    "the host of a package registry": re.compile(
        r"pypi[.]\w|pythonhosted[.]|npmjs[.]|(?:index[-_]url|find-links)\b[ =:]"
    ),
    "a path of one machine": re.compile(r"(?<![\w.~/-])/(?:work|root|tmp)/"),
}


def project_files(repo_root: Path) -> list[Path]:
    """What git tracks, and what it would after `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (repo_root / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout.splitlines()
    return [repo_root / name for name in listed if (repo_root / name).is_file()]


def foreign_lines(text: str) -> list[str]:
    return [
        f"line {number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FOREIGN.items()
        if pattern.search(line)
    ]


def make_targets(repo_root: Path) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (repo_root / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_no_file_names_a_registry_or_a_path_of_one_machine(repo_root: Path) -> None:
    files = project_files(repo_root)
    assert repo_root / "pyproject.toml" in files
    assert repo_root / ".venv" not in {parent for file in files for parent in file.parents}
    found = {}
    for file in files:
        if b"\0" not in (content := file.read_bytes()):
            found[file.relative_to(repo_root)] = foreign_lines(content.decode("utf-8"))
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "https://" + "pypi" + ".org/simple",
        "--index" + "-url=x",
        "root = '/" + "work/x'",
        "cd /" + "tmp/x",
        '"/' + 'root/x"',
    ],
)
def test_a_foreign_line_is_found(line: str) -> None:
    assert len(foreign_lines(line)) == 1


def test_constraints_are_names_with_versions_only(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!_]*", line)] == []
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))]
    assert lines == sorted(set(lines), key=str.lower)


def test_every_dependency_is_constrained(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    constrained = {plain(line) for line in (repo_root / "constraints.txt").read_text("utf-8").splitlines()}
    assert {plain(requirement) for requirement in wanted} <= constrained


def plain(requirement: str) -> str:
    """`jsonargparse[signatures]>=4` -> `jsonargparse`, in the one spelling that stands for all."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~; ]", requirement)[0]).lower()


def test_every_make_target_in_contributing_exists(repo_root: Path) -> None:
    text = (repo_root / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"(?:^|`|\$ |&& )make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named
    assert named <= make_targets(repo_root)


def test_make_alone_lists_the_targets(repo_root: Path) -> None:
    shown = subprocess.run(["make"], cwd=repo_root, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE))
    assert listed == make_targets(repo_root) - {"debian"}
    assert {"quickstart", "test", "test-full", "lint", "bench", "faults", "ui"} <= listed


def test_configs_that_the_makefile_names_exist(repo_root: Path) -> None:
    named = re.findall(r"--config (\S+)", (repo_root / "Makefile").read_text("utf-8"))
    assert named
    assert [name for name in named if not (repo_root / "configs" / "experiment" / f"{name}.yaml").is_file()] == []


def test_ci_runs_lint_and_every_test(repo_root: Path) -> None:
    script = repo_root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert {"make lint", "make test-full"} <= set(script.read_text("utf-8").splitlines())


def test_a_test_reaches_this_machine_and_no_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_a_command_runs_in_the_tests_own_folder(lit_cnn_cli: Callable[..., Any], tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    right = lit_cnn_cli("--version", fresh=True)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.startswith("lit-cnn ")
    assert lit_cnn_cli("no-such-command", fresh=True).returncode == 2


def test_a_process_ends_at_once_with_its_exit_code_and_all_that_it_printed() -> None:
    ended = _run_in_a_process("lambda: print('done') or atexit.register(print, 'bye') and 3")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "done\nbye\n", "")
    failed = _run_in_a_process("lambda: 1 / 0")
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr and failed.stdout == "taken apart\n"


def _run_in_a_process(main: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import atexit, lit_cnn.cli as cli\n"
        "class Last:\n"
        "    def __del__(self): print('taken apart')\n"
        f"last = Last(); cli.main = {main}; cli.run()"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
