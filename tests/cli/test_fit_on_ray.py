"""Where the processes of a run go on a Ray cluster, and what is refused before any goes there."""

import pytest

from lit_cnn.cli import main
from lit_cnn.cli.fit_on_ray import places
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
