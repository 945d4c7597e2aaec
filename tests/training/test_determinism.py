"""`make determinism`, with fewer runs."""

import pytest

from tests.determinism import PRECISIONS, main


@pytest.mark.slow  # a minute: four trainings
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_with_workers_ends_with_the_weights_of_one_without(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("sys.argv", ["determinism", "--num_workers", "2", "--precision", precision])
    code, printed = main(), capsys.readouterr().out
    assert code == 0, printed
    assert "yes, bit for bit" in printed and "NO" not in printed.split()
