"""Help is quick and true: what it names exists."""

import re
from collections.abc import Callable

import pytest

from lit_cnn.cli import HELP, main
from lit_cnn.cli.precheck import known_options
from tests.conftest import Finished


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version"]
    + [
        f"{name} --help"
        for name in ("ensemble", "compare", "advise", "ui", "sync", "predict", "configs", "export", "gc")
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
    for option in ("--data.root", "--model.arch", "--seeds", "--resume", "--trainer.max_epochs", "--seed_everything"):
        assert option in text, option


def test_every_option_in_the_overview_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for line in HELP.splitlines():
        command = re.search(r"lit-cnn (fit|test|predict|compare|ensemble|configs|export|gc) .*?--", line)
        if command is None:
            continue
        known = {f"--{name}" for name in known_options()} | {"--seeds"}
        if command[1] in ("predict", "compare", "ensemble", "configs", "export", "gc"):
            with pytest.raises(SystemExit, match="0"):
                main([command[1], "--help"])
            known = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
        assert set(re.findall(r"--[\w.]+", line)) <= known, line
