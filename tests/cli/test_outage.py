"""`lit-cnn fit` with the tracking server away: it ends well and says so; several runs wait once, not each."""

import time

import pytest

from tests.outages import LAST_LINE
from tests.runs import fit
from tests.tracking_server import free_port


def test_runs_end_well_with_the_server_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(f"--tracking_uri=http://127.0.0.1:{free_port()}", "--trainer.max_epochs=1") == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == LAST_LINE
    assert "test images right" in said.out and said.out.splitlines()[-1].startswith("run ")


def test_the_runs_of_several_seeds_wait_once_for_a_server_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = time.sleep

    def counted(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("lit_cnn.tracking.supervisor.time.sleep", counted)
    uri = f"--tracking_uri=http://127.0.0.1:{free_port()}"
    assert fit(uri, "--trainer.max_epochs=1", "--seeds", "0", "1", "2") == 0
    assert capsys.readouterr().err.count(LAST_LINE) == 4  # the parent too
    assert 4 < sum(waits) < 8  # 5 s, once
