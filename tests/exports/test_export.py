"""`lit-cnn export` on runs that were really trained: each format says what its members say, or is not written."""

import base64
import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import softmax

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import replace_folder_atomically
from lit_cnn.data.sources import load_digits
from lit_cnn.evaluation.logits_file import read_logits, write_logits
from lit_cnn.evaluation.predict import load_member, split_by_path
from lit_cnn.exports import _card
from lit_cnn.exports.load import load
from lit_cnn.exports.recipe import find_recipe, load_members
from lit_cnn.portable import CARD, read_card
from lit_cnn.tracking import resolve_store
from tests.runs import fit, inside, three_seeds, tracked_runs

FORMATS = ("onnx", "openvino", "torch", "pyfunc")
WEIGHTS = (0.5, 0.3, 0.2)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the trained store, a weighted, calibrated ensemble and its export in each format, two views."""
    trained = three_seeds(tmp_path_factory.getbasetemp())
    with inside(tmp_path_factory.mktemp("left")) as folder:
        shutil.copytree(trained / "mlruns", folder / "mlruns")
        ids = [run.run_id for run in tracked_runs(folder, "fit")]
        weights = ["--weights", *map(str, WEIGHTS)]
        assert main(["ensemble", "--runs", *ids, *weights, "--views", "1", "2", "--calibration"]) == 0
        (ensemble,) = tracked_runs(folder, "ensemble")
        for name in FORMATS:
            assert export(ensemble.run_id, f"--output={name}", f"--format={name}", "--views=2") == 0
        yield folder


@pytest.fixture
def copied(left: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies an export into the test's folder, to be changed."""
    return lambda name: Path(shutil.copytree(left / name, tmp_path / name))


def export(*arguments: str) -> int:
    return main(["export", *arguments])


def expected(folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns test images `(N, 1, 32, 32)`, their probabilities by the definition, and the temperature."""
    runs = tracked_runs(folder, "fit")
    total = np.zeros(())
    for run, weight in zip(runs, WEIGHTS, strict=True):
        member = load_member(run.artifacts / "checkpoints" / "best.ckpt")
        images = np.stack([cv2.resize(image, (32, 32)) for image in digits_of(member)])[:, None]
        with torch.no_grad():
            views = [member.model(torch.from_numpy(np.ascontiguousarray(x))) for x in (images, images[..., ::-1])]
        total = total + weight * np.mean([softmax(view.double().numpy(), axis=1) for view in views], axis=0)
    (ensemble,) = tracked_runs(folder, "ensemble")
    table = json.loads((ensemble.artifacts / "evaluation" / "table.json").read_text())
    (line,) = [row for row in table["rows"] if row["name"].endswith("weighted") and row["num_views"] == 2]
    return images, softmax(np.log(total) / line["temperature"], axis=1), line["temperature"]


def digits_of(member: Any) -> list[np.ndarray]:
    images = load_digits().images
    return [images[index] for index in split_by_path(member, "test")]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_the_ensemble_says(name: str, left: Path) -> None:
    images, probabilities, temperature = expected(left)
    assert abs(temperature - 1) > 0.05
    classifier = load(left / name).classifier
    found = classifier.probabilities(images)
    np.testing.assert_allclose(found, probabilities, atol=2e-6)
    np.testing.assert_array_equal(classifier.view(load_digits().images[5]).shape, (1, 32, 32))
    card = read_card(left / name / "artifacts" / "export" if name == "pyfunc" else left / name)
    assert card.parity["images"] == len(images) and card.parity["largest_difference"] < 1e-5
    given = {run.run_id: weight for run, weight in zip(tracked_runs(left, "fit"), WEIGHTS, strict=True)}
    assert card.temperature == temperature and {m["run_id"]: m["weight"] for m in card.members} == given
    assert card.class_names == [str(digit) for digit in range(10)]
    if name == "openvino":  # the names are in the graph, for whoever gets it alone
        (names,) = ElementTree.parse(left / name / "model.xml").iterfind("rt_info/model_info/class_names")
        assert json.loads(names.attrib["value"]) == card.class_names


def test_the_onnx_file_needs_nothing_of_ours(left: Path) -> None:
    images, probabilities, _ = expected(left)
    session = onnxruntime.InferenceSession(left / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert names == read_card(left / "onnx").class_names
    for count in (1, 5):
        (found,) = session.run(["probabilities"], {"images": images[:count]})
        np.testing.assert_allclose(found, probabilities[:count], atol=2e-6)


def test_one_run_and_the_plain_mean_of_two(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(left)
    ids = [run.run_id for run in tracked_runs(left, "fit")][:2]
    assert export(ids[0], "--format=torch", "--output=one") == 0
    assert export(*ids, "--format=torch", "--output=two") == 0
    images, _, _ = expected(left)
    alone = []
    for run in tracked_runs(left, "fit")[:2]:
        with torch.no_grad():
            logits = load_member(run.artifacts / "checkpoints" / "best.ckpt").model(torch.from_numpy(images))
        alone.append(softmax(logits.double().numpy(), axis=1))
    one, two = (load(name).classifier.probabilities(images) for name in ("one", "two"))
    np.testing.assert_allclose(one, alone[0], atol=2e-6)
    np.testing.assert_allclose(two, np.mean(alone, axis=0), atol=2e-6)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        # Of a release that took every temperature.
        ({"temperature": 0.010000012, "val_accuracy": 1.0}, "on val, with or without some of its images, the loss"),
        ({"temperature": 0.07, "val_accuracy": 1.0}, "every val image is classified correctly"),
        ({"temperature": 0.7, "val_accuracy": 0.9}, ""),
        ({"temperature": None, "no_temperature": "no gain"}, "it does not lower the negative log-likelihood"),
        ({"temperature": None}, ""),
    ],
)
def test_a_temperature_that_nothing_determines_is_not_exported(
    kept: dict[str, Any], reason: str, left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(left / "mlruns", tmp_path / "mlruns")
    (ensemble,) = tracked_runs(tmp_path, "ensemble")
    file = tmp_path / ensemble.artifacts.relative_to(left) / "evaluation" / "table.json"
    table = json.loads(file.read_text())
    for row in table["rows"]:
        del row["no_temperature"]
        row.update(kept)
    file.write_text(json.dumps(table))
    recipe = find_recipe(resolve_store(None), [ensemble.run_id], views=2)
    said = capsys.readouterr().err
    assert (f"is exported without a temperature: {reason}" in said) if reason else "temperature" not in said
    assert recipe.temperature == (1 if reason else kept["temperature"] or 1)


def test_an_export_takes_images_as_large_as_its_members_did(
    left: Path, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(left)
    folder = copied("onnx")
    card = read_card(folder)
    assert card.max_pixels is None and "max_pixels" not in (folder / CARD).read_text()  # earlier releases can read it
    (folder / CARD).write_text(replace(card, max_pixels=10**9).to_json())
    assert load(folder).classifier.max_pixels == 10**9
    recipe = find_recipe(resolve_store(None), [run.run_id for run in tracked_runs(left, "fit")][:2], views=1)
    members = load_members(resolve_store(None), recipe, None)
    members[1] = replace(
        members[1], record=replace(members[1].record, data={**members[1].record.data, "max_pixels": 10**9})
    )
    assert _card(recipe, members).max_pixels == 10**9


def test_an_export_of_before_that_has_such_a_temperature_is_told_of(
    copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied("torch")
    load(folder)
    assert "temperature" not in capsys.readouterr().err
    card = read_card(folder)
    (folder / CARD).write_text(replace(card, temperature=0.010000012).to_json())
    load(folder)
    assert (
        "torch: its temperature, 0.01, is where the fit stopped: its probabilities are wrong" in capsys.readouterr().err
    )


def test_a_model_that_says_something_else_is_not_written(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(left / "mlruns", tmp_path / "mlruns")
    run = tracked_runs(tmp_path, "fit")[0]
    for file in tmp_path.glob("mlruns/predictions/*.safetensors"):
        logits = read_logits(file)
        assert logits is not None
        logits[:, :5] = np.roll(logits[:, :5], 1, axis=-1)  # five images get another class
        write_logits(file, logits)
    assert export(run.run_id, "--format=torch", "--output=model") == 2
    said = capsys.readouterr().err
    assert "gives 5 of 359 test images another class than the stored predictions" in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if "model" in path.name) == []
    for file in tmp_path.glob("mlruns/predictions/*.safetensors"):
        logits = read_logits(file)
        assert logits is not None
        logits[:, :5] = np.roll(logits[:, :5], -1, axis=-1)
        write_logits(file, logits * 1.1)  # the same classes, surer
    assert export(run.run_id, "--format=torch", "--output=model") == 2
    assert "probabilities differ by up to" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_what_is_there_gives_way_only_when_told(left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(left / "mlruns", tmp_path / "mlruns")
    first, second = (run.run_id for run in tracked_runs(tmp_path, "fit")[:2])
    assert export(first, "--format=torch", "--output=model") == 0
    assert export(second, "--format=torch", "--output=model") == 2
    assert "--output" in (said := capsys.readouterr().err) and "--overwrite" in said
    assert read_card(tmp_path / "model").members[0]["run_id"] == first
    assert export(second, "--format=torch", "--output=model", "--overwrite") == 0
    assert read_card(tmp_path / "model").members[0]["run_id"] == second
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"dear")
    assert export(first, "--format=torch", "--output=mine", "--overwrite") == 2
    assert "is no export" in capsys.readouterr().err and (tmp_path / "mine" / "photo.jpg").exists()
    assert not list(tmp_path.glob(".m*"))


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with replace_folder_atomically(path) as temporary:
        (temporary / "old").write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replace_folder_atomically(path, overwrite=True) as temporary:
        (temporary / "new").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError), replace_folder_atomically(path) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(path) == ["old"] and os.listdir(tmp_path) == ["folder"]
    with replace_folder_atomically(path, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(path) == ["new"] and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_a_flipped_byte_is_refused_by_the_name_of_its_file(name: str, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    for file in sorted(folder.iterdir()):
        if file.name == CARD:
            continue
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UsageError, match=rf"{file.name} was changed after it was written"):
            load(folder)
        file.write_bytes(content)
    load(folder)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_a_pickle_in_the_models_place_executes_nothing(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = copied(name)
    zipped = io.BytesIO()
    torch.save(Bomb(), zipped)
    for content in (pickle.dumps(Bomb()), zipped.getvalue()):
        for file in folder.iterdir():
            if file.name != CARD:
                file.write_bytes(content)
                change_card(folder, "sha256", **{file.name: hashlib.sha256(content).hexdigest()})
        with pytest.raises(UsageError, match=r"^source=") as refusal:
            load(folder)
        assert "SHA-256" not in str(refusal.value)
        assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "executed").exists()  # it would have


def change_card(folder: Path, field: str, **values: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    card[field].update(values)
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", {"../../secret": "0" * 64}),
        ("sha256", {"model.onnx": "0" * 64, "/etc/passwd": "0" * 64}),
        ("format", "pickle"),
        ("format", ["onnx"]),
        ("class_names", []),
        ("image_size", 10**9),
        ("in_channels", 2),
        ("interpolation", "sinc"),
        ("temperature", float("nan")),
        ("views", 10),
        ("schema", 2),
    ],
)
def test_a_card_out_of_line_is_refused(field: str, value: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("onnx")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, field: value}))
    with pytest.raises(UsageError, match=rf"model\.json is not as lit-cnn export writes it \({field}"):
        load(folder)


def test_a_card_that_lies_or_points_away_is_refused(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("onnx")
    original = (folder / CARD).read_text()
    for change, message in (
        ({"class_names": ["cat", "dog"]}, "does not predict the classes"),
        ({"image_size": 64}, "does not take the images"),
    ):
        (folder / CARD).write_text(json.dumps({**json.loads(original), **change}))
        with pytest.raises(UsageError, match=message):
            load(folder)
    (folder / CARD).write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        load(folder)
    (folder / CARD).write_text(original)
    (folder / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(UsageError, match=r"model\.onnx is a link out of the folder"):
        load(folder)
    networks = copied("torch")
    card = json.loads((networks / CARD).read_text())
    card["members"][0]["arch"] = "no_such_net"
    (networks / CARD).write_text(json.dumps(card))
    with pytest.raises(UsageError, match=r"cannot be built .*no such architecture"):
        load(networks)


def test_mistakes_are_one_line_before_anything_is_written(
    left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(left)
    run = tracked_runs(left, "fit")[0].run_id
    (ensemble,) = tracked_runs(left, "ensemble")
    onnx = ("--format=onnx", "--output=model")
    for arguments, message in (
        (("abcdef123", *onnx), "run abcdef123: not in"),
        ((run, run, *onnx), "a run is named twice"),
        ((run, ensemble.run_id, *onnx), "is no training run"),
        ((run, *onnx, "--views=5"), "--views 5: an export has 1 view, or 2"),
        ((run, *onnx, "--batch_size=0"), "--batch_size 0"),
        ((run, *onnx, "--register=net"), "--register net: MLflow's registry takes --format pyfunc"),
        ((run, "--format=pyfunc", "--output=model", "--register=a/b"), "--register a/b"),
        ((run, "--format=pyfunc", "--output=model", "--register=a", "--alias=v1"), "--alias v1"),
        ((run, "--format=pyfunc", "--output=model", "--alias=champion"), "give --register NAME too"),
        ((run, "--format=pickle", "--output=model"), "invalid choice"),
    ):
        assert export(*arguments) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert export(run, "--format=openvino", "--output=model") == 2
    assert "--format openvino: needs openvino, which is not installed; pip install" in capsys.readouterr().err
    assert main(["predict", "--model=openvino", "."]) == 2
    assert "--model openvino: needs openvino, which is not installed" in capsys.readouterr().err
    assert main(["predict", "--model=nowhere", "."]) == 2
    assert "--model nowhere: no such folder" in capsys.readouterr().err
    assert not (left / "model").exists()


def test_ensembles_that_cannot_leave_are_refused(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(left / "mlruns", tmp_path / "mlruns")
    ids = [run.run_id for run in tracked_runs(tmp_path, "fit")]
    assert fit("--data.image_size=28", "--trainer.max_epochs=1", "--test_after_fit=false") == 0
    smaller = tracked_runs(tmp_path, "fit")[-1].run_id
    assert main(["ensemble", "--runs", *ids, "--combine=vote", "--views=1"]) == 0
    assert main(["ensemble", "--runs", *ids, "--combine=logits", "--views=1"]) == 0
    _, vote, logits = tracked_runs(tmp_path, "ensemble")
    capsys.readouterr()
    for arguments, message in (
        ((ids[0], smaller), "the members differ in image_size (28, 32)"),
        ((vote.run_id,), "votes, which gives no probabilities"),
        ((logits.run_id, "--views=2"), "was evaluated with 1 crops"),
    ):
        assert export(*arguments, "--format=torch", "--output=model") == 2
        assert message in capsys.readouterr().err
    assert export(logits.run_id, "--format=torch", "--output=model") == 0
    assert read_card(tmp_path / "model").combine == "logits"


def write_images(folder: Path, count: int = 8) -> list[np.ndarray]:
    folder.mkdir()
    images = list(load_digits().images[:count])
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return images


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def test_predict_with_an_export_says_uncertain_below_a_probability(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    classifier = load(left / "onnx").classifier
    probabilities = classifier.probabilities(np.stack([classifier.view(image) for image in images]))
    middle = float(np.median(probabilities.max(axis=1)))
    predict = ["predict", f"--model={left / 'onnx'}", "images", "--num_workers=0"]
    assert main([*predict, f"--min_confidence={middle}"]) == 0
    rows = rows_of(tmp_path / "predictions.csv")
    assert [row["best_class"] for row in rows] == [str(label) for label in probabilities.argmax(axis=1)]
    uncertain = probabilities.max(axis=1) < middle
    assert 0 < uncertain.sum() < len(images)
    for row, is_uncertain in zip(rows, uncertain, strict=True):
        assert row["class"] == ("uncertain" if is_uncertain else row["best_class"])
    assert main([*predict, "--output=plain.csv"]) == 0
    assert list(rows_of(tmp_path / "plain.csv")[0]) == ["file", "class", "probability", "error"]
    assert main([*predict, "--min_confidence=1.5"]) == 2
    assert "--min_confidence 1.5: give a probability from 0 to 1" in capsys.readouterr().err


def test_a_registered_export_predicts_by_its_alias(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    shutil.copytree(left / "mlruns", tmp_path / "mlruns")
    first, second = tracked_runs(tmp_path, "fit")[:2]
    pyfunc = ("--format=pyfunc", "--register=digits_net")
    assert export(first.run_id, *pyfunc, "--output=first", "--alias=champion") == 0
    assert export(second.run_id, *pyfunc, "--output=second") == 0
    assert "models:/digits_net/2" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "first")  # the registry has its own
    for address, run in (("models:/digits_net@champion", first), ("models:/digits_net/2", second)):
        checkpoint = f"--ckpt_path={run.artifacts / 'checkpoints' / 'best.ckpt'}"
        assert main(["predict", f"--model={address}", "images", "--output=one.csv", "--num_workers=0"]) == 0
        assert main(["predict", checkpoint, "--folder=images", "--output=other.csv", "--num_workers=0"]) == 0
        one, other = rows_of(tmp_path / "one.csv"), rows_of(tmp_path / "other.csv")
        assert [row["class"] for row in one] == [row["class"] for row in other]
        sure = ([float(row["probability"]) for row in rows] for rows in (one, other))
        np.testing.assert_allclose(next(sure), next(sure), atol=1e-5)
    assert main(["predict", "--model=models:/digits_net@nobody", "images"]) == 2
    assert "models:/digits_net@nobody: not in sqlite:mlflow.db" in capsys.readouterr().err
    kinds = [run.tags.get("kind") for run in tracked_runs(tmp_path)]
    assert kinds.count("export") == 2


ASK = """
import sys
for name in ("torch", "timm", "lightning", "sklearn"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import lit_cnn
assert lit_cnn.__file__.startswith(sys.argv[1]), lit_cnn.__file__  # the source that went along
answer = model.predict(pandas.DataFrame({"image": [open(file, "rb").read() for file in sys.argv[2:]]}))
outputs = {column["name"]: column["type"] for column in model.metadata.signature.outputs.to_dict()}
assert outputs == {"class": "string", "probability": "double", "probabilities": "map"}, outputs
print(answer.to_json(orient="records"))
"""


def test_mlflow_loads_the_pyfunc_without_pickle_torch_or_us(left: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    files = [str(tmp_path / "images" / f"{number}.png") for number in range(4)]
    asked = [sys.executable, "-c", ASK, str(left / "pyfunc"), *files]
    done = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert_same_as_the_export(json.loads(done.stdout), left)
    requirements = (left / "pyfunc" / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in requirements} >= {"mlflow", "onnxruntime", "simplejpeg"}
    assert not {"torch", "lightning", "timm"} & {line.partition("==")[0] for line in requirements}
    assert not [file for file in (left / "pyfunc").rglob("*") if file.suffix in (".pkl", ".pth", ".pt", ".ckpt")]


@pytest.mark.slow
def test_a_served_model_answers_an_image_posted_to_it(left: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(left / "pyfunc"), "--env-manager", "local"]
    # MLflow starts its server by the name that the shell finds.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    server = subprocess.Popen(
        [*serve, "--port", str(port)], env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", 120)
        contents = [(tmp_path / "images" / f"{number}.png").read_bytes() for number in range(4)]
        assert_same_as_the_export(ask(port, contents), left)
        # As docs/export.md says: MLflow's server for models looks at no Host header, and listens on this machine only.
        foreign = urllib.request.Request(f"http://127.0.0.1:{port}/ping", headers={"Host": "evil.example"})
        with urllib.request.urlopen(foreign, timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(port, [b"no image"])
        assert refusal.value.code == 400
        assert "image 0: this image cannot be decoded" in refusal.value.read().decode()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def assert_same_as_the_export(answers: list[dict[str, Any]], left: Path) -> None:
    classifier = load(left / "onnx").classifier
    views = np.stack([classifier.view(image) for image in load_digits().images[: len(answers)]])
    probabilities = classifier.probabilities(views)
    assert [answer["class"] for answer in answers] == [str(label) for label in probabilities.argmax(axis=1)]
    named = [answer["probabilities"] for answer in answers]
    assert all(list(each) == list(classifier.class_names) for each in named)  # in label order
    np.testing.assert_allclose([list(each.values()) for each in named], probabilities, atol=1e-6)
    np.testing.assert_allclose([answer["probability"] for answer in answers], probabilities.max(axis=1), atol=1e-6)


def ask(port: int, contents: list[bytes]) -> list[dict[str, Any]]:
    """Posts images as the curl of docs/export.md does."""
    records = [{"image": base64.b64encode(content).decode()} for content in contents]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"dataframe_records": records}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["predictions"]
    return found


def wait_for(address: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
