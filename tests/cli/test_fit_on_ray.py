"""Where the processes of a run go on a Ray cluster, and what is refused before any goes there."""

import contextlib
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lit_cnn import __version__
from lit_cnn.cli import fit_on_ray, main
from lit_cnn.cli.fit_on_ray import places
from lit_cnn.cli.precheck import known_options, take_engine
from lit_cnn.cli.tune import _parser
from lit_cnn.core import ray_cluster
from lit_cnn.core.errors import UsageError
from lit_cnn.core.ray_cluster import Node

HEAD, SMALL, LARGE, OTHER = (
    Node("h", "head", 0, 0, is_here=True),
    Node("s", "small", 1, 0, is_here=False),
    Node("l", "large", 8, 2, is_here=False),
    Node("o", "other", 8, 2, is_here=False),
)
NODES = [HEAD, SMALL, LARGE, OTHER]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "uses_gpu", "expected"),
    [
        (1, 1, False, [SMALL]),
        (2, 1, False, [LARGE] * 2),
        (12, 1, False, [LARGE] * 6 + [OTHER] * 6),
        (4, 1, True, [LARGE] * 2 + [OTHER] * 2),
        (1, 3, False, [SMALL, LARGE, OTHER]),
        (2, 2, True, [LARGE] * 2 + [OTHER] * 2),
    ],
)
def test_processes_are_spread_evenly_over_as_few_machines_as_have_room(
    devices: int, num_nodes: int, uses_gpu: bool, expected: list[Node]
) -> None:
    assert places(NODES, devices, num_nodes, uses_gpu) == expected


@pytest.mark.parametrize(
    ("devices", "num_nodes", "uses_gpu", "reason"),
    [
        (3, 1, True, "no 3 GPUs, as many on each node: head has 0, small has 0, large has 2, other has 2"),
        (17, 1, False, "no 17 cores"),
        (2, 3, False, "no 3 nodes with 2 cores each"),
    ],
)
def test_what_the_cluster_has_no_room_for_is_refused(devices: int, num_nodes: int, uses_gpu: bool, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        places(NODES, devices, num_nodes, uses_gpu)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--engine", "slurm"], "--engine slurm: give ray, or leave it out"),
        (["--address", "auto"], "--address auto: is that of a Ray cluster; give --engine ray too"),
        (["--engine=ray", "--address"], "--address: give HOST:PORT"),
        (["--engine=ray", "--address=head"], "--address head: is not HOST:PORT"),
        (["--engine=ray", "--address=ray://head:10001"], "--address ray://head:10001: a client outside"),
        (["--engine=ray", "--address=127.0.0.1:1"], "--address 127.0.0.1:1: nobody answers there"),
        (["--engine=ray", "--trainer.devices=-1"], "--trainer.devices -1: with --engine ray, give how many"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config=lenet5_scratch_digits", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"lit-cnn: error: {line}")


@pytest.mark.parametrize(
    ("version", "line"),
    [(None, "engine=ray: Ray is not installed"), ("2.9.3", "engine=ray: Ray 2.9.3 is older than 2.50; ")],
)
def test_a_ray_that_does_not_fit_is_refused(version: str | None, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if version is None:
        monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(ray_cluster.importlib.metadata, "version", lambda name: version)
    with pytest.raises(UsageError, match=line), ray_cluster.joined(None):
        pass


@pytest.mark.parametrize("name", ["fit.sbatch", "tune.sbatch"])
def test_the_scripts_for_slurm_are_shell_and_name_options_that_there_are(name: str, repo_root: Path) -> None:
    script = repo_root / "docs" / "clusters" / name
    subprocess.run(["bash", "-n", script], check=True)
    (command,) = re.findall(r"lit-cnn (\w+ .+?)(?:\n[^ ]|$)", script.read_text().replace("\\\n", " "), re.DOTALL)
    check_options(command.split())


def test_the_job_for_kubernetes_names_options_and_versions_that_there_are(repo_root: Path) -> None:
    job = yaml.safe_load((repo_root / "docs" / "clusters" / "rayjob.yaml").read_text())["spec"]
    (command,) = re.findall(r"lit-cnn ([^']+)", job["entrypoint"])
    check_options(command.split())
    cluster = job["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (repo_root / "constraints.txt").read_text().splitlines()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {each["image"] for group in groups for each in group["template"]["spec"]["containers"]}
    assert images == {f"lit-cnn:{__version__}"}
    assert cluster["workerGroupSpecs"][0]["replicas"] == int(command.split()[-1])


def check_options(command: list[str]) -> None:
    """Refuses options of a command that there are not."""
    name, *arguments = command
    if name == "fit":
        _, _, arguments = take_engine(arguments)
        others = set[str]()
    else:
        others = set(_parser().options)
    given = [text.partition("=")[0] for text in arguments if text.startswith("--")]
    assert given
    assert [text for text in given if text not in others and text.removeprefix("--") not in known_options()] == []


@pytest.mark.parametrize(
    "arguments", [["--config=two.yaml"], ["--trainer", "{devices: 2, accelerator: cpu}"], ["--trainer.devices=2"]]
)
def test_how_many_processes_is_read_wherever_it_is_said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text("trainer: {devices: 2, accelerator: cpu}\n")
    asked = list[tuple[object, ...]]()

    def places_of(nodes: object, *given: object) -> list[Node]:
        asked.append(given)
        raise UsageError("devices", 2, "there is no cluster", "none")

    monkeypatch.setattr(fit_on_ray, "joined", lambda address: contextlib.nullcontext([HEAD]))
    monkeypatch.setattr(fit_on_ray, "places", places_of)
    assert main(["fit", "--config=lenet5_scratch_digits", *arguments, "--engine=ray"]) == 2
    assert asked == [(2, 1, False)]
