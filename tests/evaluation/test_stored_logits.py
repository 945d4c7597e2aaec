"""Logits are computed once: here and with the run of their network, they are found again without loading it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import sha256_of_file
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.compare import compare
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.leaderboard import Leaderboard
from lit_cnn.evaluation.logits_file import read_logits, write_logits
from lit_cnn.evaluation.members import find_networks
from lit_cnn.evaluation.pair import Pair
from lit_cnn.evaluation.predict import Loading, load_member, load_network, run_network
from lit_cnn.evaluation.stored_logits import read_record
from lit_cnn.evaluation.view_logits import predict_views
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import RunInfo, artifact_names, search_runs
from lit_cnn.tracking.sender import sync
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.resume import mark_unfinished
from tests.runs import TrackedRun, fit, tracked_runs
from tests.tracking.conftest import start_python
from tests.tracking_server import tracking_server

HERE = Path("mlruns/predictions")


def evaluate(run: TrackedRun | RunInfo, views: int = 1, split: Split = "test", uri: str | None = None) -> np.ndarray:
    """Returns what every command starts from: a tracked network's logits `(V, N, K)` about a split."""
    store = resolve_store(uri)
    (network,) = find_networks(store, [run.run_id])
    member = load_network(store, network, [split])
    return predict_views(member, member.data.splits[split], [views], HERE, Loading(num_workers=0))[views]


def accuracy(logits: np.ndarray, checkpoint: Path) -> np.float32:
    """Returns it on test, by the data of any checkpoint of the run."""
    data = load_member(checkpoint).data
    return np.float32((logits[0].argmax(axis=1) == data.image_set.labels[data.splits.test]).mean())


def kept_with(run: TrackedRun) -> Path:
    return Path("mlruns/artifacts/digits", run.run_id, "artifacts/logits")


def flip(file: Path) -> None:
    """Changes the last byte in a file of its own: it may have other names."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cnn: warning: ")]


@contextmanager
def no_network() -> Iterator[None]:
    """Makes it an error to read a checkpoint or to build a network."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a network was loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", refuse)
        patch.setattr(LitClassifier, "__init__", refuse)
        yield


@pytest.fixture
def runs(store_copy: Path) -> list[TrackedRun]:
    return tracked_runs(store_copy, "fit")


def test_logits_come_back_as_they_were(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    write_logits(tmp_path / "a.safetensors", logits)
    stored = read_logits(tmp_path / "a.safetensors")
    assert stored is not None
    np.testing.assert_array_equal(stored, logits)
    assert read_logits(tmp_path / "absent.safetensors") is None


def test_a_changed_or_cut_file_counts_as_absent(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_logits(file, np.ones((1, 4, 3), np.float32))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_logits(file) is None
    file.write_bytes(content[: len(content) // 2])
    assert read_logits(file) is None


def test_a_network_that_more_views_bring_in_takes_gradients(runs: list[TrackedRun]) -> None:
    evaluate(runs[0], views=1)
    (network,) = find_networks(resolve_store(), [runs[0].run_id])
    member = load_network(resolve_store(), network, ["test"])
    predict_views(member, member.data.splits["test"][:4], [2], HERE, Loading(num_workers=0))
    size = member.record.preprocessing["image_size"]
    member.model(torch.zeros(1, 1, size, size, dtype=torch.uint8)).sum().backward()
    assert all(parameter.grad is not None for parameter in member.model.parameters())


@pytest.mark.slow
def test_a_second_evaluation_loads_no_network(runs: list[TrackedRun]) -> None:
    ids = [run.run_id for run in runs]
    options: dict[str, Any] = {"runs": ids, "views": [1, 2], "calibration": True, "loading": Loading(num_workers=0)}
    first, pair, board = ensemble(**options), compare(ids[:2]), compare(experiment="digits")
    assert isinstance(pair, Pair) and isinstance(board, Leaderboard)
    (standing,) = board.standings
    with no_network():
        again = ensemble(**options)
        assert [(line.accuracy, line.row.cost) for line in again.lines] == [
            (line.accuracy, line.row.cost) for line in first.lines
        ]
        pair_again, board_again = compare(ids[:2]), compare(experiment="digits")
        assert isinstance(pair_again, Pair) and isinstance(board_again, Leaderboard)
        assert pair_again.mcnemar == pair.mcnemar
        (standing_again,) = board_again.standings
        assert standing_again.limits == standing.limits is not None
        assert standing_again.group.multiply_adds == standing.group.multiply_adds == 416_520
        for asks_a_network in ({"output": Path("out")}, {"latency": True}, {"views": [5]}):
            with pytest.raises(UsageError, match="a network was loaded"):
                ensemble(**{**options, **asks_a_network})
        assert main(["export", ids[0], "--format=torch", "--output=left"]) == 2
    ensemble(**options, output="out")
    assert Path("out/activation.png").exists()
    assert main(["export", ids[0], "--format=torch", "--output=left"]) == 0


def test_logits_stay_with_their_run_when_those_here_go(
    runs: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    first = [evaluate(run) for run in runs]
    here = {file.name: file.read_bytes() for file in HERE.iterdir()}
    for run in runs:
        assert sorted(file.suffix for file in kept_with(run).iterdir()) == [".json", ".safetensors"]
        assert all(file.samefile(HERE / file.name) for file in kept_with(run).iterdir())  # takes no further room
    assert main(["gc", "--older_than", "0", "--delete"]) == 0
    assert not list(HERE.iterdir())
    capsys.readouterr()
    with no_network():
        assert np.array_equal([evaluate(run) for run in runs], first)
    assert warnings(capsys) == []
    assert {file.name: file.read_bytes() for file in HERE.iterdir()} == here


def test_what_is_damaged_is_made_anew_and_said(runs: list[TrackedRun], capsys: pytest.CaptureFixture[str]) -> None:
    first = [evaluate(run) for run in runs[:2]]
    (logits,), (record,) = kept_with(runs[0]).glob("*.safetensors"), kept_with(runs[1]).glob("*.json")
    whole = [file.read_bytes() for file in (logits, record)]
    shutil.rmtree(HERE)
    flip(logits)
    record.unlink()
    record.write_bytes(whole[1][:-20])
    capsys.readouterr()
    assert np.array_equal([evaluate(run) for run in runs[:2]], first)
    for run, file, said in zip(runs[:2], (logits, record), warnings(capsys), strict=True):
        assert said.endswith(f"logits/{file.name} of run {run.name} ({run.run_id}) is damaged; it is made anew")
    assert [file.read_bytes() for file in (logits, record)] == whole
    with no_network():
        assert np.array_equal([evaluate(run) for run in runs[:2]], first)
    assert warnings(capsys) == []


def test_a_run_that_takes_no_files_is_evaluated_all_the_same(
    runs: list[TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    kept_with(runs[0]).write_text("no folder")
    capsys.readouterr()
    first = [evaluate(run, views=2) for run in runs[:2]]
    (said,) = warnings(capsys)
    assert f"the logits of run {runs[0].name} ({runs[0].run_id}) are in" in said and "takes no" in said
    assert len(list(HERE.glob("*.safetensors"))) == 4 and len(list(kept_with(runs[1]).iterdir())) == 3
    with no_network():
        assert np.array_equal([evaluate(run, views=2) for run in runs[:2]], first)
    (said,) = warnings(capsys)  # it was tried again
    assert f"the logits of run {runs[0].name} ({runs[0].run_id}) are in" in said
    kept_with(runs[0]).unlink()
    with no_network():
        assert np.array_equal([evaluate(run, views=2) for run in runs[:2]], first)
    assert warnings(capsys) == []
    assert [len(list(kept_with(run).iterdir())) for run in runs[:2]] == [3, 3]  # kept as soon as it can be
    assert not list(HERE.glob("*.here_only"))


def go_on_with(run: TrackedRun | RunInfo, journals: Path) -> None:
    """Makes a run one that has not come to its end, so that a fit goes on with it rather than in a run of its own."""
    mark_unfinished(journals / run.tags["lit_cnn.key"], run.tags["config_digest"], run.name)


def test_a_run_that_went_on_is_asked_anew(runs: list[TrackedRun], store_copy: Path) -> None:
    before = evaluate(runs[0])
    last = kept_with(runs[0]).parent / "checkpoints" / "last.ckpt"
    assert accuracy(before, last) == np.float32(runs[0].metrics["test/acc"])
    go_on_with(runs[0], store_copy / "mlruns" / "journal")
    assert fit("--trainer.max_epochs=5", "--seed_everything=0", f"--ckpt_path={last}") == 0
    after, *_ = tracked_runs(store_copy, "fit")
    assert after.run_id == runs[0].run_id and after.metrics["test/acc"] != runs[0].metrics["test/acc"]
    for _ in range(2):
        assert accuracy(evaluate(after), last) == np.float32(after.metrics["test/acc"])
    records = [read_record(file) for file in kept_with(after).glob("*.json")]
    assert len({record.weights_digest for record in records if record}) == len(records) == 2


def test_a_checkpoint_that_was_changed_is_refused_though_its_logits_are_stored(runs: list[TrackedRun]) -> None:
    evaluate(runs[0])
    flip(kept_with(runs[0]).parent / "checkpoints" / "best.ckpt")
    with pytest.raises(UsageError, match=r"best\.ckpt: "):
        evaluate(runs[0])


def test_a_record_of_other_weights_is_not_believed(runs: list[TrackedRun]) -> None:
    for run in runs[:2]:
        evaluate(run)
    one, other = (next(kept_with(run).glob("*.json")) for run in runs[:2])
    (HERE / one.name).unlink()
    shutil.copyfile(other, HERE / one.name)
    with pytest.raises(UsageError, match=f"runs={runs[0].run_id}: the checkpoint of .* is not the one that its"):
        evaluate(runs[0], split="val")


WRITING = """
import numpy as np
from pathlib import Path
from lit_cnn.evaluation.logits_file import read_logits, write_logits
from lit_cnn.evaluation.stored_logits import RunLogits, find_stored
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import find_runs
store = resolve_store()
(run,) = find_runs(store, ["{run_id}"])
here, elsewhere = Path("mlruns/predictions/a.safetensors"), Path("elsewhere{number}/a.safetensors")
for value in range({number}, 300, 3):
    write_logits(here, np.full((1, 500, 10), value, np.float32))
    RunLogits(store, run).put([here])
    elsewhere.unlink(missing_ok=True)
    for file in (here, elsewhere):
        found = find_stored(file, read_logits, RunLogits(store, run))
        assert found is not None and len(np.unique(found)) == 1
"""


def test_evaluations_at_the_same_time_tear_nothing(runs: list[TrackedRun], tmp_path: Path) -> None:
    processes = [start_python(WRITING.format(run_id=runs[0].run_id, number=number), tmp_path) for number in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0 and "warning" not in said, said
    folders = (HERE, kept_with(runs[0]), *tmp_path.glob("elsewhere*"))
    assert [[file.name for file in folder.iterdir()] for folder in folders] == [["a.safetensors"]] * 5


@pytest.mark.slow
def test_through_a_server_a_hit_needs_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = ("--model.schedule=constant", "--model.warmup_fraction=0")
    with tracking_server(tmp_path / "server") as server:
        uri = server.proxy_uri
        store = resolve_store(uri)

        def trained(*options: str) -> RunInfo:
            assert fit(*constant, f"--tracking_uri={uri}", *options) == 0
            sync(store, show_progress=False)
            (run,) = search_runs(store, "digits")
            assert run.tags["lit_cnn.sha256.checkpoints/best.ckpt"] == sha256_of_file(best())
            return run

        def best() -> Path:
            (file,) = (tmp_path / "server" / "files").rglob("best.ckpt")
            return file

        run = trained("--trainer.max_epochs=1")
        first = evaluate(run, uri=uri)
        (last,) = tmp_path.glob("mlruns/journal/*/last.ckpt")
        assert accuracy(first, last) == np.float32(run.metrics["test/acc"])
        assert artifact_names(store, run, "logits") == {file.name for file in HERE.iterdir()}
        away = best().rename(tmp_path / "away")
        shutil.rmtree(HERE)
        capsys.readouterr()
        with no_network():
            assert np.array_equal(evaluate(run, uri=uri), first)
        assert len(list(HERE.iterdir())) == 2 and warnings(capsys) == []

        # Whoever cannot leave anything there evaluates all the same.
        away.rename(next((tmp_path / "server" / "files").rglob("last.ckpt")).with_name("best.ckpt"))
        server.behaviour = "lose"
        assert evaluate(run, views=2, uri=uri).shape == (2, *first.shape[1:])
        server.behaviour = "pass on"
        (said,) = warnings(capsys)
        assert f"the logits of run {run.name} ({run.run_id}) are in" in said

        go_on_with(run, tmp_path / "mlruns" / "journal")
        went_on = trained("--trainer.max_epochs=4", f"--ckpt_path={last}")
        assert went_on.run_id == run.run_id and went_on.metrics["test/acc"] != run.metrics["test/acc"]
        assert accuracy(evaluate(went_on, uri=uri), last) == np.float32(went_on.metrics["test/acc"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes them at once")
@pytest.mark.parametrize(("image_size", "parts"), [(28, [256, 44]), (448, [8] * 37 + [4]), (2000, [1] * 3)])
def test_on_a_cpu_large_views_go_through_a_network_in_parts_that_fit(image_size: int, parts: list[int]) -> None:
    views = torch.zeros(1, sum(parts), 1, 1, 1, dtype=torch.uint8).expand(-1, -1, -1, image_size, image_size)
    seen: list[int] = []

    def network(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return torch.zeros(len(part), 2)

    assert run_network(network, views, Loading()).shape == (1, sum(parts), 2)
    assert seen == parts
