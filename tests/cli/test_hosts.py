"""Processes that others start, on one host and on two: the run of `--trainer.devices 2`, bit for bit, or one line."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_cnn.tracking.journal import read_journal
from tests import forks
from tests.cli.test_resume import LONGER, assert_same_run, background_fit, only_run, statuses
from tests.cli.test_signals import TWO_DEVICES
from tests.faults import has_checkpoint, wait_until
from tests.hosts import ON_TWO_HOSTS, Host, ray_cluster, two_hosts
from tests.runs import SHORT, TrackedRun, copy_empty_store, fit, image_folder, tracked_runs

# As others start it, each step long enough to be caught in.
UNHURRIED = ("fit", *SHORT, *LONGER, "--trainer.callbacks+=tests.cli.test_resume.Unhurried")
OF_RAY = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(forks.ROOT)}
SOON = 30  # seconds in which a process notices that another one is gone


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The run that one command starts on two devices."""
    folder = tmp_path_factory.mktemp("two_devices")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    with background_fit(folder, *LONGER, *TWO_DEVICES) as process:
        assert process.wait(120) == 0
    return only_run(folder)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, where this machine lets us make them."""
    try:
        with two_hosts() as hosts:
            yield hosts
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture
def folders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder for each host, with an empty store in the first one's: the second one is to need none."""
    for name in "ab":
        (tmp_path / name).mkdir()
    copy_empty_store(tmp_path_factory.getbasetemp(), tmp_path / "a")
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.usefixtures("empty_store")
def test_what_is_left_of_other_launchers_changes_no_run_of_one_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID")
    for name in left:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning's import finds it there
    assert fit("--trainer.max_epochs=1") == 0
    assert statuses(tmp_path) == ["FINISHED"]
    assert re.search(r"run [0-9a-f]{32}$", capfd.readouterr().out.strip())

    # Several devices need what else their launcher would have left.
    for options, says in {
        TWO_DEVICES: "--trainer.devices 2: MASTER_PORT not in the environment",
        ON_TWO_HOSTS: "--trainer.num_nodes 2: LOCAL_RANK is 1 in the environment, of 1 devices a host",
    }.items():
        assert fit(*options) == 2
        assert capfd.readouterr().err.splitlines()[-1].startswith(f"lit-cnn: error: {says}")
    monkeypatch.delenv("LOCAL_RANK")
    assert fit(*ON_TWO_HOSTS) == 2
    says = "--trainer.num_nodes 2: MASTER_ADDR, MASTER_PORT not in the environment; set "
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"lit-cnn: error: {says}")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("empty_store")
def test_torchrun_and_srun_start_the_same_run(reference: TrackedRun, tmp_path: Path) -> None:
    port = free_port()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master_port", port, "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "lit_cnn", "fit", *SHORT, *LONGER, *TWO_DEVICES]
    done = subprocess.run(command, cwd=tmp_path, env=path_of_tests(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test images right") == 1
    assert_same_run(only_run(tmp_path), reference)

    srun = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "4711"}
    place = {"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_PORT": free_port()}

    def tasks(*arguments: str) -> tuple[list[int], list[str]]:
        logs = [tmp_path / f"task{rank}.txt" for rank in range(2)]
        started = []
        for rank, log in enumerate(logs):
            own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            with log.open("wb") as file:
                command = ("fit", *SHORT, *LONGER, *arguments)
                environment = {**srun, **place, **own}
                started.append(forks.start(*command, cwd=tmp_path, log=file.fileno(), environment=environment))
        return [each.wait(120) for each in started], [log.read_text() for log in logs]

    codes, logs = tasks(*TWO_DEVICES)
    assert codes == [0, 0], logs
    _, run = tracked_runs(tmp_path)
    assert_same_run(run, reference)

    # Two tasks of a run of one device would be the same run twice.
    codes, logs = tasks()
    assert codes == [2, 2]
    assert logs[0].startswith("lit-cnn: error: --trainer.devices 1: srun started 2 processes for a run of one")
    assert logs[1] == ""
    # What fails in all processes is told by one.
    codes, logs = tasks(*TWO_DEVICES, "--data.batch_size=15")
    assert codes == [2, 2]
    assert (lines_of(logs[0]), lines_of(logs[1])) == (
        ["lit-cnn: error: --data.batch_size 15: give a multiple of the 2 devices"],
        [],
    )
    assert len(tracked_runs(tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("fault", "rank", "shares"),
    [(Host.kill, 1, True), (Host.kill, 0, False), (Host.unplug, 1, False)],
    ids=["the second is killed, shared folder", "the first is killed", "the second is cut off"],
)
def test_a_host_that_is_gone_is_noticed_and_both_go_on(
    fault: Callable[[Host], None],
    rank: int,
    shares: bool,
    reference: TrackedRun,
    hosts: tuple[Host, Host],
    folders: tuple[Path, Path],
) -> None:
    places = (folders[0], folders[0]) if shares else folders
    arguments = (*UNHURRIED, *ON_TWO_HOSTS, "--resume=auto")
    running = [host.start(*arguments, cwd=place) for host, place in zip(hosts, places, strict=True)]
    wait_until(lambda: has_checkpoint(folders[0]), timeout=120)
    fault(hosts[rank])
    began = time.monotonic()
    survivor = 1 - rank
    assert running[survivor].wait(SOON) == 1
    assert time.monotonic() - began < SOON
    last = hosts[survivor].log(places[survivor]).read_text().splitlines()[-1]
    assert last.startswith(f"lit-cnn: error: process {rank} on {socket.gethostname()} ended;")
    assert "--resume auto" in last and "Traceback" not in hosts[survivor].log(places[survivor]).read_text()
    if survivor == 0:
        (journal,) = folders[0].glob("mlruns/journal/*/")
        assert [record["status"] for record, _ in read_journal(journal) if record["kind"] == "end"][-1] == "FAILED"
    running[rank].wait(SOON)

    hosts[rank].plug_in()
    hurried = [each for each in arguments if "Unhurried" not in each]
    running = [host.start(*hurried, cwd=place) for host, place in zip(hosts, places, strict=True)]
    assert [each.wait(120) for each in running] == [0, 0]
    assert_same_run(only_run(folders[0]), reference)
    assert shares or not (folders[1] / "mlruns").exists()


@pytest.mark.slow
def test_two_hosts_have_the_same_images_and_what_only_the_first_one_has(
    hosts: tuple[Host, Host], folders: tuple[Path, Path]
) -> None:
    def start_both(*arguments: str) -> tuple[list[int], list[list[str]]]:
        logs = [host.log(folder) for host, folder in zip(hosts, folders, strict=True)]
        for log in logs:
            log.unlink(missing_ok=True)
        command = ("fit", *SHORT, *ON_TWO_HOSTS, "--trainer.max_epochs=1", *arguments)
        running = [host.start(*command, cwd=folder) for host, folder in zip(hosts, folders, strict=True)]
        return [each.wait(120) for each in running], [lines_of(log.read_text()) for log in logs]

    codes, _ = start_both("--trainer.max_epochs=1")
    assert codes == [0, 0]
    first = only_run(folders[0])
    codes, logs = start_both(f"--model.weights=runs:/{first.run_id}")
    assert codes == [0, 0], logs

    own = ("--config=own_images", "--data.root=images", "--data.limit_train=null", "--data.batch_size=4")
    image_folder(folders[0] / "images", ["cat", "dog"], 12)
    codes, (told, silent) = start_both(*own)
    assert codes == [2, 2]
    (line,) = told
    assert line.startswith(f"lit-cnn: error: --data.root images: process 1 on {socket.gethostname()}: ")
    assert silent == []

    image_folder(folders[1] / "images", ["cat", "dog"], 12, seed=1)
    codes, (told, silent) = start_both(*own)
    assert codes == [2, 2]
    assert told == [
        "lit-cnn: error: --data.root images: the hosts of this run have different images there; copy the same folder "
        "to all of them"
    ]
    assert silent == []
    assert len(tracked_runs(folders[0])) == 2


@pytest.mark.slow
def test_a_signal_ends_what_waits_for_another_process(hosts: tuple[Host, Host], folders: tuple[Path, Path]) -> None:
    arguments = (*UNHURRIED, *ON_TWO_HOSTS)
    alone = hosts[0].start(*arguments, cwd=folders[0])
    wait_until(lambda: "process 0 of 2 waits for the others" in hosts[0].log(folders[0]).read_text(), timeout=60)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(5) == -signal.SIGTERM
    assert not (folders[0] / "mlruns" / "journal").exists()

    running = [host.start(*arguments, cwd=folder) for host, folder in zip(hosts, folders, strict=True)]
    wait_until(lambda: has_checkpoint(folders[0]), timeout=120)
    running[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    running[0].send_signal(signal.SIGTERM)
    time.sleep(1)
    assert running[0].poll() is None  # stops after the step, which the other one does not make
    running[0].send_signal(signal.SIGTERM)
    assert running[0].wait(15) == 128 + signal.SIGTERM
    assert hosts[0].log(folders[0]).read_text().splitlines()[-1].startswith("lit-cnn: stopped by SIGTERM")
    wait_until(lambda: statuses(folders[0]) == ["KILLED"], timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_places_the_same_run_on_two_hosts(
    reference: TrackedRun, hosts: tuple[Host, Host], folders: tuple[Path, Path]
) -> None:
    folder, head = folders[0], hosts[0]
    with ray_cluster(hosts) as address:

        def start(*arguments: str) -> forks.Forked:
            on_ray = ("--engine=ray", f"--address={address}", "--trainer.devices=2", "--trainer.accelerator=cpu")
            return head.start("fit", *SHORT, *LONGER, *on_ray, *arguments, cwd=folder, environment=OF_RAY)

        def last_line() -> str:
            return lines_of(head.log(folder).read_text())[-1]

        unhurried = ("--trainer.callbacks+=tests.cli.test_resume.Unhurried", "--resume=auto")
        running = start(*unhurried)
        wait_until(lambda: has_checkpoint(folder), timeout=120)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 128 + signal.SIGINT
        assert last_line().startswith("lit-cnn: stopped by SIGINT; the same command with --resume auto goes on")
        assert statuses(folder) == ["KILLED"]

        running = start(*unhurried)
        wait_until(lambda: "resuming" in head.log(folder).read_text(), timeout=120)
        hosts[1].kill()
        assert running.wait(60) == 1
        assert (
            last_line()
            == f"lit-cnn: error: lost with node {hosts[1].address}; the same command with --resume auto goes on"
        )
        assert "Traceback" not in head.log(folder).read_text()

        assert start().wait(60) == 2
        assert f"the cluster has no 2 cores, as many on each node: {head.address} has 1" in last_line()
    with ray_cluster(hosts):
        assert start("--resume=auto").wait(200) == 0
    assert_same_run(only_run(folder), reference)


def lines_of(log: str) -> list[str]:
    """Returns the lines that are ours: PyTorch has warnings of its own where hosts have no names."""
    return [line for line in log.splitlines() if line.startswith("lit-cnn: ")]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def path_of_tests() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(forks.ROOT)}
