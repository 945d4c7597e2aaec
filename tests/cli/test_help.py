"""Help is quick and true: what it names exists."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_cnn.cli import HELP, main
from lit_cnn.cli.precheck import known_options
from tests.conftest import REPO_ROOT, Finished


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version"]
    + [
        f"{name} --help"
        for name in ("ensemble", "compare", "advise", "tune", "ui", "sync", "predict", "configs", "export", "gc")
    ],
)
def test_help_answers_within_a_second(arguments: str, lit_cnn_cli: Callable[..., Finished]) -> None:
    # The machine may be busy: the best of three counts, and the first that is quick enough ends it.
    for _ in range(3):
        done = lit_cnn_cli(*arguments.split(), fresh=True)
        assert (done.returncode, done.stderr) == (0, "")
        if done.seconds < 1:
            break
    assert done.seconds < 1


def test_help_of_fit_lists_the_options_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for option in (
        "--data.root",
        "--model.arch",
        "--seeds",
        "--folds",
        "--split_seeds",
        "--resume",
        "--trainer.max_epochs",
        "--seed_everything",
    ):
        assert option in text, option


def test_every_option_in_the_overview_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for line in HELP.splitlines():
        command = re.search(r"lit-cnn (fit|test|predict|compare|ensemble|configs|export|gc) .*?--", line)
        if command is None:
            continue
        known = {f"--{name}" for name in known_options()} | {"--seeds", "--folds", "--split_seeds"}
        if command[1] in ("predict", "compare", "ensemble", "configs", "export", "gc"):
            with pytest.raises(SystemExit, match="0"):
                main([command[1], "--help"])
            known = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
        assert set(re.findall(r"--[\w.]+", line)) <= known, line


def test_who_has_read_enough_gets_no_traceback(tmp_path: Path) -> None:
    """As in `lit-cnn configs | head -1`."""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_cnn", "configs"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 128 + signal.SIGPIPE)
    process.stderr.close()


def test_a_terminal_shows_what_starts_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from lit_cnn.cli import precheck as p\n"
        "print(p.starting_line(['--config', 'resnet56', '--data.dataset=image_folder'], [0, 1]))\n"
        "assert not {'torch', 'lightning', 'numpy'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("starting resnet56 on image_folder, seeds 0 1 …\n", 0), done.stderr
    command = [sys.executable, "-m", "lit_cnn", "fit", "--config", "lenet5_scratch_digits"]
    screen, terminal = os.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=terminal, stdout=terminal)
    try:
        shown = os.read(screen, 1000).decode()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(screen)
    assert shown.startswith("starting lenet5 on digits, seed 0 …")
