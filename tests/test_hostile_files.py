"""Files that an attacker has written, in the place of every file that is read: none runs what it holds."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml

from lit_cnn.cli import main
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.core.files import sha256_of_file
from lit_cnn.data.index_cache import remembered
from lit_cnn.data.pixel_statistics import PixelStatistics, cached, keep
from lit_cnn.evaluation.logits_file import read_logits, write_logits
from lit_cnn.tracking.journal import JOURNAL, Journal, RunHeader
from lit_cnn.tracking.outbox import put_file
from lit_cnn.tracking.store import Store, resolve_store
from lit_cnn.training import feature_store
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint
from lit_cnn.training.resume import mark_unfinished
from tests.runs import SHORT, TrackedRun, image_folder, inside, runs_in, three_seeds

CANARY = "code_has_run"


class Bomb:
    """Unpickled, it makes the folder `code_has_run` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def raw(file: Path) -> None:
    """A pickle and nothing else."""
    file.write_bytes(pickle.dumps({"state_dict": {"weight": Bomb()}}))


def of_torch(file: Path) -> None:
    """What torch.save makes of it."""
    torch.save({"state_dict": {"weight": Bomb()}, "hyper_parameters": {}}, file)


def with_digest(file: Path) -> None:
    """A checkpoint of ours with it inside, and the right digest: whoever writes the attack can compute one."""
    file.unlink(missing_ok=True)
    save_checkpoint({"state_dict": {"weight": Bomb()}, "hyper_parameters": {}, "lit_cnn": {}}, file)


def flipped(file: Path) -> None:
    """The file itself with one bit changed in its midst; a small one if there is none."""
    if not file.exists():
        save_checkpoint({"state_dict": {"weight": torch.zeros(9)}}, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may have other names
    file.write_bytes(content)


FORMS = [raw, of_torch, with_digest, flipped]
Form = Callable[[Path], None]


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path) -> Iterator[None]:
    """The working directory of each test has no canary in the end."""
    yield
    assert not (tmp_path / CANARY).exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Returns the one line with which a command is refused; it may say before that what it is about to do."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("lit-cnn: error: ")
    return last


def test_the_bomb_goes_off_where_pickles_are_loaded(tmp_path: Path) -> None:
    for form in (raw, of_torch):
        form(tmp_path / "bomb")
        with (tmp_path / "bomb").open("rb") as file:
            pickle.load(file) if form is raw else torch.load(file, weights_only=False)
        (tmp_path / CANARY).rmdir()  # it was there


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", *SHORT, "--ckpt_path=bad.ckpt"),
        ("validate", *SHORT, "--ckpt_path=bad.ckpt"),
        ("test", *SHORT, "--ckpt_path=bad.ckpt"),
        ("predict", "--ckpt_path=bad.ckpt", "images"),
        ("fit", *SHORT, "--model.weights=bad.ckpt"),
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[-1].split('=')[0]}",
)
def test_a_file_given_as_checkpoint(
    arguments: tuple[str, ...], form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "images", ["dark"], 1)
    form(tmp_path / "bad.ckpt")
    assert "bad.ckpt" in refused(capsys, *arguments)


@pytest.mark.parametrize("form", [raw, of_torch])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_file_given_as_weights(suffix: str, form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form(tmp_path / f"bad{suffix}")
    assert f"--model.weights bad{suffix}" in refused(capsys, "fit", *SHORT, f"--model.weights=bad{suffix}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its own with three runs, of which the first is registered."""
    folder = tmp_path_factory.mktemp("hostile") / "store"
    shutil.copytree(three_seeds(tmp_path_factory.getbasetemp()), folder)
    with inside(folder):
        assert main(["sync"]) == 0  # on a busy machine the copy may have come before the last line
        (run, *_) = runs(folder)
        client = mlflow.MlflowClient(resolve_store().tracking_uri)
        client.create_registered_model("net")
        client.create_model_version("net", f"runs:/{run.run_id}/checkpoints/best.ckpt", run.run_id)
        client.set_registered_model_alias("net", "champion", "1")
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of it in the test's folder."""
    shutil.copytree(trained / "mlruns", tmp_path / "mlruns")
    return tmp_path


def runs(folder: Path) -> list[TrackedRun]:
    # Whoever opens a store that was moved puts its paths right first.
    from lit_cnn.tracking.client import connect

    connect(resolve_store(f"sqlite:///{folder}/mlruns/mlflow.db"))
    return runs_in(folder / "mlruns" / "mlflow.db", "fit")


@pytest.mark.parametrize("form", FORMS)
def test_a_tracked_runs_checkpoint(form: Form, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(store / "images", ["dark"], 1)
    first, second, _ = runs(store)
    form(first.artifacts / "checkpoints" / "best.ckpt")
    form(store / "mlruns" / "journal" / first.tags["lit_cnn.key"] / "last.ckpt")  # what fit trains on from
    address = f"runs:/{first.run_id}"
    for arguments in (
        ("fit", *SHORT, f"--ckpt_path={address}"),
        ("test", f"--ckpt_path={address}"),
        ("validate", f"--ckpt_path={address}"),
        ("predict", f"--ckpt_path={address}", "images"),
        ("fit", *SHORT, f"--model.weights={address}"),
        ("fit", *SHORT, "--model.weights=models:/net@champion"),
        ("ensemble", "--runs", first.run_id, second.run_id, "--views", "1"),
        ("compare", "--runs", first.run_id, second.run_id),
        ("export", first.run_id, "--format=torch", "--output=left"),
    ):
        line = refused(capsys, *arguments)
        assert re.search(r"(best|last)\.ckpt", line) or address in line or "models:/net@champion" in line, line
        assert not (store / "left").exists() and not (store / "predictions.csv").exists()


@pytest.mark.parametrize("form", FORMS)
def test_the_last_checkpoint_of_an_unfinished_run(form: Form, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run, *_) = runs(store)
    folder = store / "mlruns" / "journal" / run.tags["lit_cnn.key"]
    mark_unfinished(folder, run.tags["config_digest"], run.name)
    form(folder / "last.ckpt")
    for how in ("--ckpt_path=last", "--resume=auto"):
        assert str(folder / "last.ckpt") in refused(capsys, "fit", *SHORT, "--seed_everything=0", how)
    raw(folder / "unfinished.json")
    assert str(folder / "unfinished.json") in refused(capsys, "fit", *SHORT, "--resume=auto")


def test_what_a_checkpoint_says_of_its_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run, *_) = runs(store)
    checkpoint = load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")
    config = yaml.safe_load(checkpoint["lit_cnn"]["config"])
    call = {"class_path": "os.mkdir", "init_args": {"path": CANARY}}
    config["data"]["augment"] = [call]
    save_checkpoint({**checkpoint, "lit_cnn": {**checkpoint["lit_cnn"], "config": yaml.dump(config)}}, store / "a.ckpt")
    assert main(["test", "--ckpt_path=a.ckpt"]) == 0  # evaluates, and does not ask for the augmentation
    text = f"data: !!python/object/apply:os.mkdir [{CANARY}]"
    save_checkpoint({**checkpoint, "lit_cnn": {**checkpoint["lit_cnn"], "config": text}}, store / "b.ckpt")
    assert "--ckpt_path b.ckpt: its configuration cannot be read" in refused(capsys, "test", "--ckpt_path=b.ckpt")
    whole = load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt")
    save_checkpoint({**whole, "lit_cnn": {**whole["lit_cnn"], "config": text}}, store / "d.ckpt")
    for config in (SHORT, ()):
        line = refused(capsys, "fit", *config, "--ckpt_path=d.ckpt")
        assert "--ckpt_path d.ckpt: its configuration cannot be read" in line
    line = refused(capsys, "fit", *SHORT, "--data.augment", json.dumps([call]))
    assert "--data.augment os.mkdir: is not an albumentations transform" in line
    (store / "c.yaml").write_text(text)
    assert "--config c.yaml" in refused(capsys, "fit", "--config=c.yaml")


def test_a_model_that_left(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(store / "images", ["dark"], 1)
    (run, *_) = runs(store)
    assert main(["export", run.run_id, "--format=torch", "--output=left"]) == 0
    card = json.loads((store / "left" / "model.json").read_text())
    for form in (raw, of_torch, flipped):
        form(store / "left" / "model.safetensors")
        for digest in (card["sha256"]["model.safetensors"], sha256_of_file(store / "left" / "model.safetensors")):
            (store / "left" / "model.json").write_text(json.dumps(card | {"sha256": {"model.safetensors": digest}}))
            is_noticed = form is not flipped or digest == card["sha256"]["model.safetensors"]
            if is_noticed:  # who changes both file and digest changes the model, and no more
                assert "--model left" in refused(capsys, "predict", "--model=left", "images")
    raw(store / "left" / "model.json")
    assert "model.json cannot be read as JSON" in refused(capsys, "predict", "--model=left", "images")


def test_an_mlflow_model_with_a_pickle(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(store / "images", ["dark"], 1)
    model = store / "pyfunc"
    model.mkdir()
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl", "python_version": "3.11.7"}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
    raw(model / "python_model.pkl")
    client = mlflow.MlflowClient(resolve_store().tracking_uri)
    client.create_registered_model("bad")
    client.create_model_version("bad", model.as_uri(), runs(store)[0].run_id)
    client.set_registered_model_alias("bad", "champion", "1")
    for address in (str(model), "models:/bad@champion"):
        assert "has no model.json" in refused(capsys, "predict", f"--model={address}", "images")
    line = refused(capsys, "fit", *SHORT, "--model.weights=models:/bad@champion")
    assert "models:/bad@champion" in line and "not a checkpoint" in line


@pytest.mark.parametrize("form", [raw, of_torch, flipped])
def test_stored_logits_are_computed_anew(form: Form, tmp_path: Path) -> None:
    file = tmp_path / "key.safetensors"
    write_logits(file, np.zeros((1, 3, 10), np.float32))
    assert read_logits(file) is not None
    form(file)
    assert read_logits(file) is None


@pytest.mark.parametrize("form", FORMS)
def test_what_a_run_keeps_of_its_evaluation_is_made_anew(
    form: Form, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, _ = runs(store)
    arguments = ["compare", "--runs", run.run_id, other.run_id]
    assert main(arguments) == 0
    here = store / "mlruns" / "predictions"
    shutil.rmtree(here)
    files = list((run.artifacts / "logits").iterdir())
    assert sorted(file.suffix for file in files) == [".json", ".safetensors"]
    for file in files:
        form(file)
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert all(f"logits/{file.name} of run {run.name} ({run.run_id}) is damaged" in said for file in files)
    for file in here.iterdir():
        form(file)
    assert main(arguments) == 0


def test_cached_features_are_computed_anew(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = feature_store.CacheKey({"weights": "w"}, (4, 3), "fp32")

    def obtain() -> bool:
        features, found = feature_store.get_or_compute(wanted, lambda: [torch.ones(4, 3)], 10**6)
        assert torch.equal(features.values, torch.ones(4, 3))
        features.close()
        return found

    assert (obtain(), obtain()) == (False, True)
    entry = feature_store.store_folder() / wanted.name
    file, note = entry / "features.npy", json.loads((entry / "entry.json").read_text())
    objects = np.array([[Bomb()] * 3] * 4, dtype=object)

    def as_objects(file: Path) -> None:
        np.save(file, objects, allow_pickle=True)

    for form in (raw, of_torch, flipped, as_objects):
        form(file)
        if form is not flipped:
            (entry / "entry.json").write_text(json.dumps(note | {"sha256": sha256_of_file(file)}))
        assert not obtain()
        assert f"{file} was changed after it was written" in capsys.readouterr().err
    raw(entry / "entry.json")
    assert not obtain()


def test_what_is_remembered_of_data_is_found_out_anew(tmp_path: Path) -> None:
    index, fresh = tmp_path / "index.npz", {"places": np.arange(3)}
    raw(index)
    assert remembered(index, lambda: fresh)["places"].tolist() == [0, 1, 2]
    np.savez(index, places=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"), np.load(index) as file:
        file["places"]
    assert remembered(index, lambda: fresh)["places"].tolist() == [0, 1, 2]

    with index.open("wb") as file:
        np.save(file, np.arange(3.0))  # one array is no archive of them
    assert remembered(index, lambda: fresh)["places"].tolist() == [0, 1, 2]

    keep(["key"], PixelStatistics(1, (0.5,), ((0.1,),)), tmp_path / "statistics")
    (kept,) = (tmp_path / "statistics").iterdir()
    raw(kept)
    assert cached(["key"], tmp_path / "statistics") is None

    raw(tmp_path / "hashes.sqlite")
    expected = hashlib.sha256((tmp_path / "index.npz").read_bytes()).hexdigest()
    assert hash_files([tmp_path / "index.npz"], tmp_path / "hashes.sqlite") == [expected]


@pytest.fixture
def journal(store: Path) -> Iterator[Journal]:
    """The journal of a run that waits to be sent, with one file."""
    place: Store = resolve_store()
    journal = Journal.create(place.journal_dir, RunHeader.new("digits", "run", place.label, None, "ada"))
    (journal.folder / "notes.txt").write_text("notes")
    journal.append(put_file(journal.folder, journal.folder / "notes.txt", "notes"))
    journal.append({"kind": "end", "status": "FINISHED", "time": 1})
    yield journal
    journal.close()


def test_a_file_on_its_way_to_mlflow(journal: Journal, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (waiting,) = (journal.folder / "outbox").rglob("notes.txt")
    waiting.unlink()
    raw(waiting)
    for name in ("run.json", "sent.json"):
        raw(journal.folder / name)
    journal.close()
    assert main(["sync"]) == 0
    assert "1 run sent" in capsys.readouterr().out
    (run,) = (run for run in runs_in(store / "mlruns" / "mlflow.db") if run.name == "run")
    assert run.tags["lit_cnn.not_stored.notes/notes.txt"] == "the file was written to after it was logged"
    assert not list(run.artifacts.rglob("notes.txt"))


@pytest.mark.parametrize("line", [pickle.dumps(Bomb()), pickle.dumps(Bomb()) + b"\n", b"[]\n", b"3\n", b"{}\n"])
def test_a_journal_that_is_none(line: bytes, journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.close()
    (journal.folder / JOURNAL).write_bytes(line)
    assert main(["sync"]) == 1
    said = capsys.readouterr()
    assert "0 runs sent, 0 still running, 1 failed" in said.out
    assert f"{journal.folder / JOURNAL}: its first line" in said.err


def test_the_table_of_an_ensemble(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, _ = (run.run_id for run in runs(store))
    assert main(["ensemble", "--runs", one, other, "--views", "1"]) == 0
    (ensemble,) = runs_in(store / "mlruns" / "mlflow.db", "ensemble")
    for form in (raw, of_torch):
        form(ensemble.artifacts / "evaluation" / "table.json")
        line = refused(capsys, "export", ensemble.run_id, "--format=torch", "--output=left")
        assert f"RUN {ensemble.run_id}" in line and "table.json is no JSON" in line
