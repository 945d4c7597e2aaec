"""Progress where there is no terminal."""

import pytest

from lit_cnn.core.bars import ProgressLines


def test_a_long_step_prints_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(1000, "net, test")
    with lines:
        lines.update(100)  # within ten seconds: nothing
        lines.every = 0.0
        lines.update(400)
        lines.update(500)  # all done: what follows is the result
    assert capsys.readouterr().err == "net, test: 500 of 1,000 images\n"
