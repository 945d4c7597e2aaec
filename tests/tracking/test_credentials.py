"""A password is for the process that was given it: nothing that is written or shown has it."""

from pathlib import Path

import pytest

from lit_cnn.core.credentials import without_credentials
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import search_runs
from lit_cnn.tracking.sender import sync
from lit_cnn.training.record import recorded_config
from tests.runs import fit
from tests.tracking_server import tracking_server

PASSWORD = "s3cret-Wort"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://me:p@ss:w@host:5000/x@y", "http://host:5000/x@y"),
        (
            "cannot reach postgresql+psycopg://me:pw@db/runs (timeout)",
            "cannot reach postgresql+psycopg://db/runs (timeout)",
        ),
        ("https://token@host", "https://host"),
        ("sqlite:////a/b@c.db, me@host, http://host/a@b", "sqlite:////a/b@c.db, me@host, http://host/a@b"),
    ],
)
def test_addresses_lose_user_and_password(text: str, left: str) -> None:
    assert without_credentials(text) == left


def test_a_configuration_is_recorded_without_secrets() -> None:
    given = {
        "trainer": {
            "logger": [{"class_path": "WandbLogger", "init_args": {"api_key": PASSWORD, "url": "ftp://a:b@c"}}]
        },
        "model": {"arch_options": {"token_mixer": "pooling", "depth": 3}},
    }
    assert recorded_config(given) == {
        "trainer": {"logger": [{"class_path": "WandbLogger", "init_args": {"api_key": "***", "url": "ftp://c"}}]},
        "model": {"arch_options": {"token_mixer": "pooling", "depth": 3}},
        "tracking_uri": None,
    }


@pytest.mark.slow
@pytest.mark.parametrize("by_option", [True, False])
def test_nothing_that_is_written_has_the_password(
    by_option: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "server"
    with tracking_server(folder) as server:
        uri = server.proxy_uri.replace("http://", f"http://me:{PASSWORD}@")
        if not by_option:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        given = [f"--tracking_uri={uri}"] if by_option else []
        server.behaviour = "refuse"  # so that the sender has something to say of the server
        assert fit("--seeds", "0", "1", "--trainer.max_epochs=1", "--data.limit_train=32", *given) == 0
        assert list(tmp_path.glob("mlruns/journal/sender.log"))
        server.behaviour = "pass on"
        sync(resolve_store(uri), show_progress=False)
        runs = search_runs(resolve_store(uri), "digits")
        assert len(runs) == 3
    printed = capfd.readouterr()
    assert PASSWORD not in printed.out + printed.err
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "mlflow.db", "best.ckpt", "sender.log"} <= {file.name for file in written}
    assert not [file for file in written if PASSWORD.encode() in file.read_bytes()]
