"""`lit-cnn tune --study postgresql://…` on a real server, whatever is killed or cut."""

import json
from pathlib import Path

import psycopg
import pytest

from tests.cli.test_tune import started, workers_of
from tests.faults import wait_until
from tests.postgresql import PROGRAMS, postgresql
from tests.runs import tracked_runs

pytestmark = [pytest.mark.slow, pytest.mark.debian, pytest.mark.usefixtures("empty_store")]


@pytest.mark.skipif(not PROGRAMS, reason="Debian's package postgresql is not installed")
def test_no_trial_is_lost_by_a_kill_or_an_outage(tmp_path: Path) -> None:
    Path("s.yaml").write_text("model.lr: {low: 1e-3, high: 0.1, log: true}", encoding="utf-8")
    log = tmp_path / "log"
    with postgresql() as url, psycopg.connect(url.replace("/mlflow", "/postgres"), autocommit=True) as admin:
        options = ("--trials=3", "--sampler=random", "--final_seeds=0", f"--study={url}", "--resume=auto")
        command = started(log, *options)
        wait_until(lambda: "trial 1 of 3" in log.read_text("utf-8"), timeout=60)
        for process in workers_of(command.pid):
            process.kill()
        command.kill()
        command.wait()
        # The server takes nobody any more.
        command = started(log, *options)
        wait_until(lambda: "trial 2 of 3" in log.read_text("utf-8"), timeout=60)
        admin.execute("ALTER DATABASE mlflow ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlflow'")
        assert command.wait() == 1
        last = log.read_text("utf-8").splitlines()[-1]
        assert last.startswith("lit-cnn: error: the database of the study does not answer (")
        assert "not currently accepting connections" in last
        assert last.endswith("; with --resume auto the search goes on when it does")
        admin.execute("ALTER DATABASE mlflow ALLOW_CONNECTIONS true")
        command = started(log, *options)
        assert command.wait() == 0, log.read_text("utf-8")
    found = json.loads(Path("search/trials.json").read_text("utf-8"))
    assert [(row["trial"], row["state"] == "failed") for row in found["trials"]] == [(1, False), (2, False), (3, False)]
    (search,) = tracked_runs(tmp_path, "search")
    children = tracked_runs(tmp_path, "fit")
    assert (search.run_id, search.status) == (found["run"], "FINISHED")
    assert sorted(run.run_id for run in children) == sorted(row["run"] for row in found["trials"])
    assert {run.status for run in children} == {"FINISHED"}
    assert not any("postgres@" in value for run in [search, *children] for value in run.params.values())
