"""How much a team's tracking server takes: many runs at once, each with a sender of its own.

    make bench NAME=tracking_server

An MLflow server with PostgreSQL behind it, all on this machine. Each run is a process that logs without training, so
that 32 of them fit into memory; it has imported all there is before the clock starts. A round is over when MLflow has
all values of all runs; what is stored is compared with the journals after the last round. The processor time says who
was at work.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.common import ROOT, processor, save_result
from tests.faults import wait_until
from tests.outages import differences
from tests.postgresql import postgresql
from tests.tracking_server import tracking_server

_RUN = """
import sys, time
from pathlib import Path
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.tracking.supervisor import start_early
rounds, values = map(int, sys.argv[1:])
start_early()
for number in range(rounds):
    while not Path(f"../go{number}").exists():
        time.sleep(0.01)
    recorder = Recorder("team")
    recorder.begin(run_name=f"round{number}", params={"round": number}, tags={})
    for step in range(values // 5):
        recorder.log_metrics({f"metric/{name}": step / 7 for name in "abcde"}, step)
    recorder.end("FINISHED")
    while not recorder.wait_until_sent(600):  # it gives up on a server that is silent for 15 s; its sender does not
        time.sleep(0.1)
    print(recorder.key, flush=True)
time.sleep(3600)  # whoever ends takes the processor time of its sender along
"""


def measure(folder: Path, runs: int, values: int, rounds: int) -> tuple[list[dict[str, float]], int]:
    """Returns the figures of each round, and how many runs MLflow has exactly as they were logged.

    Args:
        folder: An empty folder.
        runs: Runs at a time.
        values: Values that each logs.
        rounds: Rounds, of which the first, a warm-up, is not returned.
    """
    with (
        postgresql() as database,
        tracking_server(
            folder / "server", f"--backend-store-uri={database}", f"--artifacts-destination={folder / 'files'}"
        ) as server,
    ):
        places = [folder / f"run{number}" for number in range(runs)]
        processes = [_start(place, server.uri, rounds, values) for place in places]
        try:
            pids = [process.pid for process in processes]
            _wait_until_idle(pids)
            measured, keys = [], []
            for number in range(rounds):
                before, started = _processor_seconds(pids), time.perf_counter()
                (folder / f"go{number}").touch()
                keys.append([_line(process).strip() for process in processes])
                seconds = time.perf_counter() - started
                used = {name: spent - before[name] for name, spent in _processor_seconds(pids).items()}
                measured.append({"seconds": seconds, "values a second": runs * values / seconds, **used})
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        folders = [place / "mlruns" / "journal" / key for one in keys for place, key in zip(places, one, strict=True)]
        return measured[1:], sum(not differences(server.uri, each) for each in folders)


def _start(place: Path, uri: str, rounds: int, values: int) -> "subprocess.Popen[str]":
    place.mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(rounds), str(values)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _wait_until_idle(pids: Sequence[int]) -> None:
    """Waits until each process has started its sender, and no sender computes: all are imported."""

    def spent() -> list[float]:
        senders = [child for pid in pids for child in psutil.Process(pid).children()]
        return [sum(sender.cpu_times()[:2]) for sender in senders]

    wait_until(lambda: len(spent()) == len(pids), timeout=300)
    before, now = [-1.0], spent()
    while sum(now) - sum(before) > 0.05:
        time.sleep(3)
        before, now = now, spent()


def _processor_seconds(runs: Sequence[int]) -> dict[str, float]:
    """Returns the processor time used so far by server, database, and runs (of these pids) with their senders.

    That of processes that have ended is included, which their parents know: a database ends one with each connection.
    """
    roots = {"MLflow server": ["mlflow server"], "PostgreSQL": ["bin/postgres", "-D"]}
    found = dict.fromkeys((*roots, "runs and senders"), 0.0)
    for root in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(root.info["cmdline"] or [])
        called = [name for name, words in roots.items() if all(word in command for word in words)]
        if root.pid in runs:
            called = ["runs and senders"]
        for name in called:
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    found[name] += times.user + times.system + times.children_user + times.children_system
    return found


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--values", type=int, default=1000, help="values that each run logs, of five metrics")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        measured, exact = measure(Path(folder), options.runs, options.values, options.rounds + 1)
    table = Table(title=f"{options.runs} runs at once, {options.values:,} values each")
    for column in ("", "median", "least", "largest", "rounds"):
        table.add_column(column)
    for name in measured[0]:
        values = [one[name] for one in measured]
        shown = name if name in ("seconds", "values a second") else f"processor seconds: {name}"
        cells = (statistics.median(values), min(values), max(values))
        table.add_row(shown, *(f"{value:,.1f}" for value in cells), str(len(values)))
    Console(width=100).print(table)
    attempted = options.runs * (options.rounds + 1)
    print(f"stored as logged: {exact} of {attempted} runs; {os.cpu_count()} cores, {processor()}")
    figures = {"runs": options.runs, "values": options.values, "measured": measured, "exact": exact}
    save_result("tracking_server", {**figures, "attempted": attempted})


if __name__ == "__main__":
    main()
