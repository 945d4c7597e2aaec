import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from lit_cnn.cli import main
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.inspection import without_bad_images
from lit_cnn.data.sources import load_image_set, load_webdataset
from tests.data.sources.test_manifest import png
from tests.data.test_datamodule import assert_same_batches, epochs_of
from tests.data.test_datasets import refused


def write_shard(file: Path, values: list[int], **more: Any) -> Path:
    """Writes, with the library, one image per gray level; its class is the level modulo 3."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(file)) as writer:
        for value in values:
            writer.write({"__key__": f"{value:04}", "png": png(value), "cls": value % 3, **more})
    return file


def test_shards_are_read_by_offset(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / "pets" / f"{number:03}.tar", list(range(10 * number, 10 * number + 10)))
    pets = load_image_set("webdataset", tmp_path / "pets")
    assert (pets.name, pets.in_channels, pets.splits) == ("pets", 3, {})
    assert pets.class_names == ("0", "1", "2") and pets.labels.tolist() == [0, 1, 2] * 10
    assert pets.paths[12] == "001.tar/0012" and len(set(pets.paths)) == 30
    assert pets.hashes == [hashlib.sha256(png(value)).hexdigest() for value in range(30)]
    for index in (29, 0, 13):
        np.testing.assert_array_equal(pets.images[index], np.full((4, 4, 3), index, np.uint8))
    assert load_image_set("webdataset", tmp_path / "pets").digest == pets.digest  # from what is remembered
    write_shard(tmp_path / "pets" / "001.tar", list(range(100, 110)))
    assert load_image_set("webdataset", tmp_path / "pets").images[10][0, 0, 0] == 100


def test_braces_name_shards_and_prefixes_splits(tmp_path: Path) -> None:
    for name, values in {"train-000": [0, 1, 2], "train-001": [3, 4, 5], "train-002": [6], "val-000": [7]}.items():
        write_shard(tmp_path / "shards" / f"{name}.tar", values)
    some = load_webdataset(tmp_path / "shards" / "train-{000..001}.tar")
    assert [int(image[0, 0, 0]) for image in (some.images[i] for i in some.splits["train"])] == [0, 1, 2, 3, 4, 5]
    assert set(some.splits) == {"train"} and some.name == "shards"
    both = load_webdataset(tmp_path / "shards" / "{train-{000..002},val-000}.tar")
    assert {split: len(indices) for split, indices in both.splits.items()} == {"train": 7, "val": 1}
    assert load_webdataset(tmp_path / "shards").digest == both.digest
    assert len(load_webdataset(tmp_path / "shards" / "train-001.tar").labels) == 3


def test_folders_are_splits_too(tmp_path: Path) -> None:
    for folder, values in {"train": [0, 1, 2], "valid": [3, 4], "test": [5]}.items():
        write_shard(tmp_path / "pets" / folder / "000.tar", values)
    pets = load_webdataset(tmp_path / "pets")
    levels = {split: [int(pets.images[i][0, 0, 0]) for i in indices] for split, indices in pets.splits.items()}
    assert levels == {"train": [0, 1, 2], "val": [3, 4], "test": [5]}
    assert "test/000.tar/0005" in pets.paths


def test_labels_come_from_json_where_there_is_no_cls(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key, label in {"x/1": "cat", "x/2.5": "dog", "x/3": 7}.items():
            writer.write(
                {"__key__": key.replace(".", "_"), "json": {"label": label}, "jpg": png(0), "txt": "a caption"}
            )
    pets = load_webdataset(tmp_path / "a.tar")
    assert pets.class_names == ("7", "cat", "dog") and pets.labels.tolist() == [1, 2, 0]
    assert list(pets.paths) == ["a.tar/x/1", "a.tar/x/2_5", "a.tar/x/3"]


def test_worker_processes_read_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "pets" / "000.tar", list(range(60)))
    with_workers, without = (
        ImageDataModule("webdataset", root=str(tmp_path / "pets"), num_workers=n, image_size=4, batch_size=8)
        for n in (2, 0)
    )
    for one, other in zip(
        epochs_of(with_workers.train_dataloader()), epochs_of(without.train_dataloader()), strict=True
    ):
        assert_same_batches(one, other)


def test_unusable_shards_are_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [0, 1])
    content = shard.read_bytes()
    assert "is not there" in refused(load_webdataset, tmp_path / "b-{0..1}.tar")
    (tmp_path / "empty").mkdir()
    assert "holds no .tar files" in refused(load_webdataset, tmp_path / "empty")
    for damaged in (content[:1500], b"no tar" * 500, gzip.compress(content)):
        shard.write_bytes(damaged)
        assert "a.tar is no plain, whole tar" in refused(load_webdataset, shard)
    shard.write_bytes(bytes(10240))
    assert "holds no samples" in refused(load_webdataset, shard)
    assert "sample 0000 has 2 images" in refused(load_webdataset, write_shard(shard, [0, 1], jpg=png(0)))
    with webdataset.TarWriter(str(shard)) as writer:
        writer.write({"__key__": "7", "png": png(0)})
        writer.write({"__key__": "8", "png": png(0), "json": {"label": [1, 2]}})
    assert "a.tar/7 has no label (and 1 more); give a name" in refused(load_webdataset, shard)
    write_shard(tmp_path / "some" / "train-0.tar", [0, 1])
    write_shard(tmp_path / "some" / "other-0.tar", [2])
    assert "other-0.tar names no split, others do" in refused(load_webdataset, tmp_path / "some")
    write_shard(tmp_path / "valid" / "0.tar", [0, 1])
    assert "0.tar says val" in refused(load_webdataset, tmp_path / "valid" / "{0..0}.tar")
    assert load_webdataset(tmp_path / "valid").splits == {}


def test_a_pickle_in_a_shard_is_passed_over(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [0, 1, 2])
    with tarfile.open(shard, "a") as tar:
        content = b"cposix\nsystem\n(S'touch pwned'\ntR."
        member = tarfile.TarInfo("0002.pyd")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    assert len(load_webdataset(shard).labels) == 3
    assert not Path("pwned").exists()


def test_without_the_package_one_line_says_so(repo_root: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [0, 1])
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from pathlib import Path\nfrom lit_cnn.data.sources import load_image_set\n"
        f"load_image_set('webdataset', Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("needs the package webdataset: pip install webdataset")


def test_braces_pass_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "train-000.tar", [0, 0 + 3])
    options = ["--data.dataset=webdataset", "--model.arch=resnet18", "--track=false", "--data.num_workers=0"]
    assert main(["fit", *options, "--data.root={train,test}-{000..001}.tar"]) == 2
    assert "train-001.tar is not there" in capsys.readouterr().err


def test_samples_that_have_not_one_image_are_all_found_left_out_and_refused(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with webdataset.TarWriter(str(shard)) as writer:
        for key in ("1", "2", "1"):
            writer.write({"__key__": key, "png": png(0), "cls": int(key)})
        writer.write({"__key__": "3", "png": png(0), "jpg": png(1), "cls": 1})
        writer.write({"__key__": "4", "cls": 1})
    for _ in range(2):  # the second time as it was remembered
        image_set = load_webdataset(shard)
        assert image_set.paths == ["a.tar/1", "a.tar/2"]
        (finding,) = image_set.findings
        assert (finding.kind, finding.severity) == ("not_one_image", "error")
        assert finding.cases == (("a.tar/1 (again)",), ("a.tar/3",), ("a.tar/4",))
        assert finding.message.startswith("a.tar/1 comes twice (and 2 more)")
    assert "a.tar/1 comes twice" in refused(load_image_set, "webdataset", shard)


@pytest.mark.parametrize(
    "names", [["1.png", "1.cls", "1.png", "1.cls"], ["1.png", "1.cls", "1.cls"], ["1.png", "1.cls", "1.PNG", "1.cls"]]
)
def test_a_sample_that_comes_again_at_once_is_found_with_the_others(tmp_path: Path, names: list[str]) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ["0.png", "0.cls", *names, "2.png", "2.cls", "3.cls"]:
            content = png(int(name[0])) if name.lower().endswith("png") else name[:1].encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    image_set = load_webdataset(shard)
    assert image_set.paths == ["a.tar/0", "a.tar/1", "a.tar/2"]
    assert [image_set.class_names[label] for label in image_set.labels] == ["0", "1", "2"]
    (finding,) = image_set.findings
    assert finding.cases == (("a.tar/1 (again)",), ("a.tar/3",))


def test_a_sample_that_comes_again_is_refused_though_the_first_is_bad_and_skipped(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with webdataset.TarWriter(str(shard)) as writer:
        for key, image in (("1", b"no image"), ("2", png(0)), ("3", png(1)), ("1", png(2))):
            writer.write({"__key__": key, "png": image, "cls": int(key) % 2})
    left, skipped = without_bad_images(load_webdataset(shard))
    assert list(skipped) == ["a.tar/1"]
    assert [finding.kind for finding in left.findings] == ["not_one_image"]


def test_the_shard_of_a_bad_sample_is_named_where_there_is_no_good_one(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar")):
        pass
    with webdataset.TarWriter(str(tmp_path / "1.tar")) as writer:
        writer.write({"__key__": "9", "png": png(0), "jpg": png(1), "cls": 1})
    assert "1.tar: sample 9 has 2 images" in refused(load_webdataset, tmp_path)
