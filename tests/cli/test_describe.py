"""`lit-cnn describe` prints what was counted, as a table or as JSON; its mistakes are one line."""

import json
import resource
from collections.abc import Callable

import pytest

from lit_cnn.cli import HELP, main
from lit_cnn.models import lenet
from tests.conftest import Finished


@pytest.fixture
def describe(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process and returns what it printed."""

    def run(*arguments: str) -> str:
        assert main(["describe", *arguments]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


def cells(table: str) -> list[list[str]]:
    """Returns the words of each line."""
    return [line.split() for line in table.splitlines()]


def test_the_table_of_lenet5(describe: Callable[..., str]) -> None:
    table = describe("lenet5")
    assert table.splitlines()[0].startswith("lit/lenet5: image 1 x 28 x 28, 10 classes (made for 28 px, takes 12 px or")
    lines = cells(table)
    assert ["conv1", "Conv2d", "6", "x", "28", "x", "28", "156", "117,600"] in lines
    assert ["classifier", "Linear", "10", "850", "840"] in lines
    assert ["total", "61,706", "416,520"] in lines
    assert max(map(len, table.splitlines())) <= 110


def test_the_papers_figures_stand_beside_ours(describe: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"lenet5": {"parameters": 60e3, "source": "LeCun et al. 1998, section II-B"}}
    monkeypatch.setattr(lenet, "PAPER", figures, raising=False)
    table = describe("lenet5")
    assert ["here", "paper", "difference"] in cells(table)
    assert ["parameters", "61,706", "60,000", "+1,706", "(+2.84%)"] in cells(table)
    assert ["multiply-adds", "416,520"] in cells(table)
    assert "paper: LeCun et al. 1998, section II-B" in table
    assert json.loads(describe("lenet5", "--format", "json"))["paper"] == figures["lenet5"]
    monkeypatch.delattr(lenet, "PAPER")
    assert "paper" not in describe("lenet5")


def test_a_layer_that_is_not_called_has_no_output(describe: Callable[..., str]) -> None:
    table = describe("googlenet", "--image_size", "64")
    assert ["side_branches.0.classifier", "Linear", "-", "1,025,000", "0"] in cells(table)
    assert table.splitlines()[-1].startswith("output -: not called in evaluation")
    assert "output -" not in describe("lenet5")


def test_json(describe: Callable[..., str]) -> None:
    found = json.loads(describe("resnet18", "--format", "json", "--image_size", "64", "--num_classes", "5"))
    assert found["arch"] == "timm/resnet18"
    assert found["totals"]["parameters"] == sum(layer["parameters"] for layer in found["layers"])
    assert found["totals"]["multiply_adds"] == sum(layer["multiply_adds"] for layer in found["layers"])
    assert (found["image_size"], found["native_image_size"], found["in_channels"]) == (64, 224, 3)
    last = found["layers"][-1]
    assert last == {"name": "fc", "type": "Linear", "output_shape": [5], "parameters": 2565, "multiply_adds": 2560}
    assert found["paper"] == {}


def test_compare(describe: Callable[..., str]) -> None:
    lines = cells(describe("resnet34", "--compare", "resnet18"))
    assert ["timm/resnet34", "timm/resnet18", "ratio"] in lines
    assert ["parameters", "21,797,672", "11,689,512", "1.865"] in lines
    both = json.loads(describe("lenet5", "--compare", "resnet18", "--format", "json"))
    assert (both["arch"], both["compare"]["arch"]) == ("lit/lenet5", "timm/resnet18")
    # Each at its own size, unless one is given.
    assert (both["image_size"], both["compare"]["image_size"]) == (28, 224)
    both = json.loads(describe("lenet5", "--compare", "resnet18", "--image_size", "32", "--format", "json"))
    assert (both["image_size"], both["compare"]["image_size"]) == (32, 32)


def test_options_are_those_of_the_first(describe: Callable[..., str]) -> None:
    both = json.loads(
        describe("resnet50", "--compare", "resnet50", "--arch_options", "{base_width: 128}", "--format=json")
    )
    assert both["totals"]["parameters"] > both["compare"]["totals"]["parameters"] == 25_557_032


def test_stages(describe: Callable[..., str]) -> None:
    lines = cells(describe("resnet18", "--stages"))
    assert ["0", "2:", "conv1", "to", "bn1", "64", "x", "112", "x", "112", "9,536", "118,013,952"] in lines
    assert ["5", "fc", "1000", "513,000", "512,000"] in lines
    assert ["total", "11,689,512", "1,814,073,344"] in lines
    found = json.loads(describe("resnet18", "--stages", "--format", "json"))
    assert [stage["number"] for stage in found["stages"]] == list(range(6))
    assert found["stages"][4]["output_shape"] == [512, 7, 7]
    assert "stages" not in json.loads(describe("lenet5", "--format", "json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: ARCH; see lit-cnn describe --help"),
        (["resnet81"], "ARCH resnet81: no such architecture; nearest: resnet18"),
        (["lenet5", "--compare", "resnet81"], "--compare resnet81: no such architecture; nearest: resnet18"),
        (["lenet5", "--compare", "lenet5", "--stages"], "argument --stages: not allowed with argument --compare"),
        (["lenet5", "--image_size", "8"], "--image_size 8: too small for lit/lenet5; give 12 or more"),
        (["lenet5", "--image_size", "-1"], "--image_size -1: too small for lit/lenet5; give 12 or more"),
        (["lenet5", "--image_size", "big"], "argument --image_size: invalid int value: 'big'"),
        (["lenet5", "--in_channels", "0"], "--in_channels 0: give 1 or more"),
        (["lenet5", "--num_classes", "-1"], "--num_classes -1: give 0 or more"),
        (["lenet5", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["lenet5", "--arch_options", "{foo: 3}"], "--arch_options foo: lit/lenet5 has no such option"),
        (["lenet5", "--arch_options", "{foo:"], "--arch_options {foo:: give names and values in YAML"),
        (["lenet5", "--arch_options", "[1]"], "--arch_options [1]: give names and values in YAML"),
        (["lenet5", "--arch_options", "{pretrained: true}"], "pretrained is not an option of an architecture"),
        (["resnet18", "--arch_options", "{image_size: 8}"], "image_size is not an option of an architecture"),
        (["vit_tiny_patch16_224", "--image_size", "33"], "--image_size 33: timm/vit_tiny_patch16_224 does not take it"),
        (["pit_ti_224", "--stages"], "--stages: timm/pit_ti_224 is not made to be split into stages"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("lit-cnn: error: ")
    assert said in line
    assert "--model." not in line
    assert "--data." not in line


def test_help_names_the_options_and_answers_within_a_second(lit_cnn_cli: Callable[..., Finished]) -> None:
    for _ in range(3):  # as in test_help: the machine may be busy
        done = lit_cnn_cli("describe", "--help", fresh=True)
        assert (done.returncode, done.stderr) == (0, "")
        if done.seconds < 1:
            break
    assert done.seconds < 1
    for option in ("--image_size", "--in_channels", "--num_classes", "--arch_options", "--compare", "--stages"):
        assert option in done.stdout
    (line,) = [line for line in HELP.splitlines() if "lit-cnn describe" in line]
    assert all(word.strip("[]") in done.stdout for word in line.split() if "--" in word)


def test_resnet152_takes_less_than_ten_seconds(lit_cnn_cli: Callable[..., Finished]) -> None:
    # Of the processor: the machine may be busy with other tests.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = lit_cnn_cli("describe", "resnet152", "--format", "json", OMP_NUM_THREADS="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["totals"]["parameters"] == 60_192_808
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
