"""Configurations: by name from any directory, in the wheel, and options that win wherever they stand."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_cnn.cli import main
from lit_cnn.cli.configs import (
    available_configs,
    available_searches,
    config_text,
    configs_folder,
    copy_config,
    load_config,
)
from lit_cnn.cli.lit_cli import LitCLI
from lit_cnn.cli.parser import OneLineParser, arranged
from lit_cnn.cli.precheck import known_options
from lit_cnn.core.errors import UsageError
from lit_cnn.data.transforms import TrainTransform
from lit_cnn.models import BUILDERS
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import Distillation
from tests.runs import CONFIGS, ROOT

# What the files of 0.1 said, by name, their `data:` and `model:` paths filled in.
OF_0_1: dict[str, Any] = json.loads((Path(__file__).parent / "configs_of_0_1.json").read_text("utf-8"))
MOVED = {"lit_cnn.pca_color.PCAColor": "lit_cnn.data.pca_color.PCAColor"}
VERTICAL, TRANSPOSE = ({"class_path": f"albumentations.{name}"} for name in ("VerticalFlip", "Transpose"))
SHORT_FIT = ("--trainer.max_epochs=1", "--data.limit_train=64", "--data.num_workers=0", "--model.lr=0.001")


@cache
def parser_of(command: str, model_class: type[LitClassifier] = LitClassifier) -> OneLineParser:
    """The parser of a command, built once."""
    built: list[OneLineParser] = []

    class OnlyParser(LitCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            built.append(parser)
            raise StopIteration

    with pytest.raises(StopIteration):
        OnlyParser(command, [], model_class=model_class)
    return built[0]


def parsed(*arguments: str) -> dict[str, Any]:
    """What `lit-cnn fit` makes of its arguments, by section."""
    parser = parser_of("fit")
    text = parser.dump(parser.parse_args(arranged(arguments)), skip_unset=False, format="yaml")
    options: dict[str, Any] = yaml.safe_load(text)
    return options


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    sections = {name: {**below[name], **value} for name, value in above.items() if isinstance(value, dict)}
    return {**below, **above, **sections}


# ------------------------------------------------------------------------------------------------ names


def test_every_name_of_0_1_is_there() -> None:
    groups = [name.partition("/")[0] for name in OF_0_1]
    assert {group: groups.count(group) for group in groups} == {
        "augment": 6, "data": 9, "experiment": 13, "model": 31, "transfer": 6,
    }  # fmt: skip
    assert OF_0_1.keys() <= available_configs().keys()
    assert {f"model/{name}" for name in BUILDERS} <= available_configs().keys()


@pytest.mark.parametrize("name", OF_0_1)
def test_a_name_of_0_1_says_what_it_said(name: str) -> None:
    text = json.dumps(OF_0_1[name])
    for old, new in MOVED.items():
        text = text.replace(old, new)
    wanted = json.loads(text)
    if "efficientnet_lite0" in name:  # what these weights meant before there was the option
        wanted["data"]["crop_pct"] = 1.0
    assert load_config(name) == wanted
    # The parser, which reads the files itself, comes to the same; and so it does of what is copied out.
    assert parsed("--config", name) == overlaid(parsed(), wanted)
    Path("copied.yaml").write_text(config_text(name), encoding="utf-8")
    assert load_config("copied.yaml") == wanted


def test_every_configuration_parses_and_has_a_line_of_its_own_kind() -> None:
    lines = available_configs()
    assert len(lines) >= 65
    for name, line in lines.items():
        assert 10 < len(line) <= 120 and "{" not in line, name
        assert parsed(f"--config={name}")["seed_everything"] == 0
    files = {file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml")}
    recipes = {"model/residual_32px", "model/residual_224px", "model/vgg"}
    recipes.add("experiment/residual_scratch_fashion_mnist_small")
    assert files - lines.keys() - available_searches().keys() == recipes


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("own_images", "experiment/own_images"),
        ("experiment/own_images", "experiment/own_images"),
        ("configs/experiment/own_images.yaml", "experiment/own_images"),
        ("own_images.yaml", "experiment/own_images"),
        ("resnet18", "model/resnet18"),
        ("resnet56", "model/resnet56"),
        ("../model/resnet56.yaml", "model/resnet56"),
        (str(CONFIGS / "model" / "resnet56.yaml"), "model/resnet56"),
        (str(CONFIGS / "data" / "digits.yaml"), "data/digits"),
        ("plain56_scratch_fashion_mnist_small", "experiment/plain56_scratch_fashion_mnist_small"),
        ("transfer/head_only", "transfer/head_only"),
    ],
)
def test_a_configuration_is_found_from_any_directory(given: str, name: str) -> None:
    assert load_config(given) == load_config(name)
    assert parsed("--config", given) == parsed("--config", name)


def test_a_file_of_the_working_directory_comes_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    for path in ("own_images", "configs/experiment/own_images.yaml"):
        (tmp_path / path).write_text("recipe: mine\n", encoding="utf-8")
        assert load_config(path) == {"recipe": "mine"}
        assert parsed("--config", path)["recipe"] == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alexnet", ["config=alexnet", "augment/alexnet or model/alexnet"]),
        ("own_image", ["config=own_image: no such file", "did you mean experiment/own_images?", "lit-cnn configs"]),
        ("modle/resnet56", ["model/resnet56", "lit-cnn configs"]),
        ("transfer/own_images", ["no configuration of that name"]),
        ("zzzz", ["no configuration of that name; lit-cnn configs lists all"]),
        ("data", ["no such file"]),
        (str(CONFIGS / "model" / "vgg.yaml"), ["recipe for several networks", "model/vgg16, model/vgg19"]),
    ],
)
def test_a_name_that_is_not_there_is_refused_in_python_too(name: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as refusal:
        load_config(name)
    assert [part for part in said if part not in str(refusal.value)] == [], str(refusal.value)


# ------------------------------------------------------------------------------------------------ files


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def test_files_include_names_and_files_and_what_is_later_wins() -> None:
    write(
        {
            "mine/base.yaml": "data: {batch_size: 8}\nmodel: {lr: 0.25}\nrecipe: base\n",
            "mine/all.yaml": "include: [data/digits, model/lenet5, base.yaml]\nmodel: {weight_decay: 1e-3}\n",
            "mine/list.yaml": "include: all.yaml\ndata:\n  augment+: [{class_path: albumentations.VerticalFlip}]\n",
        }
    )
    options = parsed("--config=mine/list.yaml")
    digits, lenet5 = load_config("data/digits")["data"], load_config("model/lenet5")["model"]
    assert options["data"].items() >= {
        **digits, "batch_size": 8, "augment": [*digits["augment"], VERTICAL],
    }.items()  # fmt: skip
    assert options["model"].items() >= {**lenet5, "lr": 0.25, "weight_decay": 0.001}.items()
    assert options["recipe"] == "base"
    assert load_config("mine/list.yaml")["data"] == {
        **digits, "batch_size": 8, "augment": [*digits["augment"], VERTICAL],
    }  # fmt: skip


def test_files_of_0_1_work_as_they_did() -> None:
    write(
        {
            "data/my_digits.yaml": "dataset: digits\nimage_size: 16\n",
            "model/my_net.yaml": "arch: lenet5_1998\nlr: 0.125\n",
            "model/options.yaml": "drop_rate: 0.5\n",
            "experiment/old.yaml": "data: ../data/my_digits.yaml\nmodel: ../model/my_net.yaml\nrecipe: old\n",
            # Beside the files that came with 0.1, of which this one is now derived.
            "experiment/beside.yaml": "data: ../data/my_digits.yaml\nmodel: ../model/resnet56.yaml\n",
        }
    )
    old = parsed("--config=experiment/old.yaml")
    assert (old["data"]["image_size"], old["model"]["arch"], old["model"]["lr"]) == (16, "lenet5_1998", 0.125)
    assert old["recipe"] == "old"
    beside = parsed("--config", "experiment/beside.yaml")
    assert (beside["data"]["image_size"], beside["model"]["arch"], beside["model"]["lr"]) == (16, "resnet56", 0.1)
    groups = parsed("--data", "data/my_digits.yaml", "--model=model/my_net.yaml", "--recipe=old")
    assert groups == old
    assert load_config("experiment/old.yaml")["model"] == {"arch": "lenet5_1998", "lr": 0.125}


def test_a_section_takes_a_file_of_either_form() -> None:
    write({"bare.yaml": "lr: 0.125\n"})
    for form in (("--model", "model/lenet5"), ("--model=configs/model/lenet5.yaml",), ("--config=lenet5",)):
        assert parsed(*form) == parsed("--config", "model/lenet5")
    assert parsed("--model.lr=0.5", "--model=bare.yaml")["model"]["lr"] == 0.5
    assert parsed("--model=bare.yaml", "--model=model/lenet5")["model"]["lr"] == 0.004
    assert parsed("--model=model/lenet5", "--model", "bare.yaml")["model"]["lr"] == 0.125
    assert parsed("--model", "{lr: 0.75}", "--model=bare.yaml")["model"]["lr"] == 0.75


@pytest.mark.parametrize(
    ("files", "arguments", "said"),
    [
        ({"a.yaml": "include: b.yaml", "b.yaml": "include: a.yaml"}, ["--config=a.yaml"], ["includes itself"]),
        ({"a.yaml": "include: {b: c}"}, ["--config=a.yaml"], ["--config a.yaml", "list of names"]),
        ({"a.yaml": "include: [nowhere]"}, ["--config=a.yaml"], ["--config nowhere", "no such file"]),
        ({"a.yaml": "data: nowhere.yaml"}, ["--config=a.yaml"], ["--data nowhere.yaml", "no such file"]),
        ({"a.yaml": "dataset: digits"}, ["--config=a.yaml"], ["a.yaml", "dataset", "did you mean data.dataset?"]),
        ({"a.yaml": "3: 4"}, ["--config=a.yaml"], ["a.yaml", "3: no such option"]),
        ({}, ["--data", "experiment/own_images"], ["--data experiment/own_images", "--config experiment/own_images"]),
        ({}, ["--config"], ["--config: give a name"]),
        ({}, ["--config", "--model.lr=1"], ["--config: give a name"]),
        ({}, ["--config=own_images", "lenet5"], ["FOLDER lenet5: no such folder or file", "give --config lenet5"]),
        ({}, ["--model", "lenet6"], ["--model lenet6", "model/lenet5"]),
        ({}, ["--model.num_classes=3"], ["--model.num_classes 3", "no such option"]),
        ({}, ["--model.image_size=32"], ["--model.image_size 32", "--data.image_size"]),
    ],
)
def test_a_mistake_is_one_line(
    files: dict[str, str], arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(files)
    assert main(["fit", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lit-cnn: error: ")
    assert [part for part in said if part not in line] == [], line


# ------------------------------------------------------------------------------------------------ order


def interleavings(one: Sequence[Any], other: Sequence[Any]) -> list[list[Any]]:
    """Every way to merge two lists that keeps the order of each."""
    merged = []
    for places in itertools.combinations(range(len(one) + len(other)), len(one)):
        first, second = iter(one), iter(other)
        merged.append([next(first) if place in places else next(second) for place in range(len(one) + len(other))])
    return merged


@pytest.mark.parametrize("spaced", [False, True], ids=["with =", "with a space"])
def test_options_win_wherever_they_stand(spaced: bool) -> None:
    write(
        {
            "one.yaml": "model: {arch: nin, lr: 0.5, label_smoothing: 0.1}\ndata: {augment: []}\n",
            "two.yaml": "model: {lr: 0.25, weight_decay: 0.125}\n"
            "data:\n  augment: [{class_path: albumentations.HorizontalFlip}]\n",
        }
    )
    files = [("--config", "one.yaml"), ("--config", "two.yaml")]
    options = [
        ("--model.arch", "lenet5_1998"),
        ("--data.augment+", str(VERTICAL)),
        ("--model.weight_decay", "1"),
        ("--data.augment+", str(TRANSPOSE)),
        ("--model.weight_decay", "2"),
    ]
    wanted_model = {"arch": "lenet5_1998", "lr": 0.25, "weight_decay": 2.0, "label_smoothing": 0.1}
    wanted_augment = [{"class_path": "albumentations.HorizontalFlip"}, VERTICAL, TRANSPOSE]
    ways = interleavings(files, options)
    assert len(ways) == 21
    for pairs in ways:
        found = parsed(*(itertools.chain(*pairs) if spaced else (f"{name}={value}" for name, value in pairs)))
        assert found["model"].items() >= wanted_model.items(), pairs
        assert found["data"]["augment"] == wanted_augment, pairs


def test_a_later_configuration_wins_and_a_callbacks_option_follows_its_callback() -> None:
    write({"more.yaml": "trainer:\n  callbacks+: [{class_path: ModelSummary}]\n"})
    more = ("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor=val/acc")
    for arguments in ((*more, "--config=more.yaml"), ("-c", "more.yaml", *more), (*more, "-c=more.yaml")):
        summary, stopping = parsed(*arguments)["trainer"]["callbacks"]
        assert summary["class_path"].endswith("ModelSummary")
        assert stopping["class_path"].endswith("EarlyStopping")
        assert stopping["init_args"]["monitor"] == "val/acc"
    assert parsed("--config=model/nin", "--config=model/lenet5")["model"]["lr"] == 0.004
    assert parsed("--config=model/lenet5", "--config=model/nin")["model"]["lr"] == 0.05


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.arch", "lenet5_1998", "--config", "own_images", "--print_config"],
        ["--print_config", "--model.arch=lenet5_1998", "--config=own_images"],
        ["--config", "own_images", "--print_config", "--model.arch", "lenet5_1998"],
    ],
)
def test_print_config_shows_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *arguments])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["model"]["arch"], shown["model"]["weight_decay"]) == ("lenet5_1998", 0.0005)
    assert shown["data"]["dataset"] == "image_folder"


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_lists_prints_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out.splitlines()
    folders = [line for line in listed if not line.startswith(" ")]
    assert folders == ["augment/", "data/", "experiment/", "model/", "search/", "transfer/"]
    assert len(listed) - len(folders) == len(available_configs()) + len(available_searches())
    assert any(line.split(maxsplit=1) == ["resnet56", available_configs()["model/resnet56"]] for line in listed)
    assert main(["configs", "search/lr"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "search" / "lr.yaml").read_text("utf-8")
    assert main(["configs", "model/resnet56"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# resnet56, 32 px") and yaml.safe_load(printed) == load_config("model/resnet56")
    assert main(["configs", "own_images", "--output", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text("utf-8")) == load_config("own_images")
    assert parsed("--config=mine.yaml") == parsed("--config=own_images")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["own_image"], "NAME own_image: no such file, and no configuration of that name; did you mean"),
        (["own_images", "--output=there.yaml"], "--output there.yaml: is there already"),
        (["own_images", "--output=there.yaml/below.yaml"], "--output there.yaml/below.yaml: cannot be written"),
        (["--output=new.yaml"], "--output new.yaml: give the configuration's NAME too"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"there.yaml": "recipe: mine\n"})
    assert main(["configs", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"lit-cnn: error: {said}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text("utf-8") == "recipe: mine\n"


def test_copying_returns_nothing_and_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_config("transfer/auto", tmp_path / "auto.yaml")
    assert load_config(str(tmp_path / "auto.yaml")) == load_config("transfer/auto")
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ options and the wheel


def test_the_options_read_from_the_sources_are_those_that_the_parsers_take() -> None:
    parsers = [parser_of(command) for command in ("fit", "validate", "test")] + [parser_of("fit", Distillation)]
    for parser in parsers:
        texts = {text.lstrip("-") for action in parser._actions for text in action.option_strings}
        linked = {text.partition(" --> ")[2] for text in texts if " --> " in text}
        # No options of their own: a link, an append to a list, the help of a class.
        taken = {text for text in texts if not text.endswith(("+", ".help")) and " --> " not in text} - {"print_shtab"}
        of_distillation = {"model.teachers", "model.temperature", "model.alpha"}
        assert known_options() - taken == (set() if "model.alpha" in taken else of_distillation)
        assert taken - known_options() == set()
        assert "model.num_classes" in linked and not linked & known_options()


def test_a_class_path_of_0_1_works_in_an_augmentation() -> None:
    with pytest.warns(FutureWarning, match=r"lit_cnn\.pca_color is now lit_cnn\.data\.pca_color"):
        old = TrainTransform(32, augment=[{"class_path": "lit_cnn.pca_color.PCAColor"}])
    (new,) = load_config("augment/alexnet")["data"]["augment"][1:]
    assert [type(step) for step in old.steps] == [type(step) for step in TrainTransform(32, augment=[new]).steps]


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    source, installed, empty = (tmp_path / name for name in ("source", "installed", "empty"))
    empty.mkdir()
    for folder in ("lit_cnn", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*wheel, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(installed)
    assert (installed / "lit_cnn" / "py.typed").is_file()
    shipped = {path.relative_to(installed / "lit_cnn" / "configs") for path in installed.rglob("*.yaml")}
    assert shipped == {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        there = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run([sys.executable, *arguments], cwd=empty, env=there, capture_output=True, text=True)

    where = run("-c", "from lit_cnn.cli.configs import configs_folder; print(configs_folder())")
    assert where.stdout == f"{installed / 'lit_cnn' / 'configs'}\n"
    done = run("-m", "lit_cnn", "fit", "--config", "lenet5_scratch_digits", *SHORT_FIT)
    assert done.returncode == 0, done.stderr
    assert "test images right" in done.stdout
    assert (empty / "mlruns" / "mlflow.db").is_file()


def test_a_checkout_has_them_beside_the_package() -> None:
    assert configs_folder() == CONFIGS
