"""Checkpoint files: written whole or not at all, with a SHA-256 inside that is checked before anything is read.

PyTorch's checkpoint is a zip archive, and a zip archive may end in a comment. The digest of all bytes before the
comment is put there, so that the file and its digest can never part, and any reader of PyTorch checkpoints still
opens it. A `LitClassifier`'s checkpoint that Lightning's own `ModelCheckpoint` wrote has no comment, and is read too.
"""

import errno
import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import CANNOT_WRITE, replace_atomically, size_in_words

_PREFIX = b"sha256:"
_COMMENT_LENGTH = len(_PREFIX) + 64
_END_OF_ARCHIVE = b"PK\x05\x06"
_END_LENGTH = 22  # of an archive's last record, without a comment
_HPARAMS = {"arch", "num_classes", "image_size", "class_names", "interpolation"}
"""By which the hyperparameters of a `LitClassifier` are known."""


class CheckpointIO256(CheckpointIO):
    """Lightning's door to checkpoint files: atomic, with a digest, and never a pickle that runs code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; see `save_checkpoint`."""
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint to the CPU; see `load_checkpoint`. `weights_only` is always on."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint file if it is there."""
        Path(path).unlink(missing_ok=True)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a dictionary of tensors and plain values beside `path`, adds its digest, syncs it and renames it.

    Raises:
        OSError: If it cannot be written, for want of room above all; what was at `path` is still there.
    """
    try:
        with replace_atomically(path) as temporary:
            torch.save(checkpoint, temporary)
            _append_digest(temporary)
    except (OSError, RuntimeError) as error:
        number = _why_not_written(error)
        if number is None:
            raise
        what = "" if number == errno.ENOSPC else f"{os.strerror(number)}: "
        raise OSError(number, f"{what}no room for {size_in_words(size_of(checkpoint))}", str(path)) from error


def size_of(values: Any) -> int:
    """Returns the bytes of all tensors in nested dictionaries and lists, about what a checkpoint of them takes."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return 0
    return sum(size_of(value) for value in values)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU: tensors and plain values only, its digest checked.

    One that Lightning itself wrote has no digest. Then the checksums of its archive are checked, and that it is a
    `LitClassifier`'s.

    Raises:
        UsageError: If the file is missing, is no checkpoint of lit_cnn, was changed after it was written, or holds
            anything that would run code.
    """
    if not path.is_file():
        raise UsageError("ckpt_path", path, "no such file")
    has_digest = _check_bytes(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if (other := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            reason = f"it holds {other[1]}"
        raise UsageError("ckpt_path", path, f"cannot be read as tensors and plain values ({reason})") from error
    if not has_digest and not _is_classifiers(checkpoint):
        raise UsageError("ckpt_path", path, "is not a checkpoint of lit_cnn", "give one of a LitClassifier")
    return checkpoint


def digest_of_weights(state_dict: dict[str, torch.Tensor]) -> str:
    """Returns the SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _why_not_written(error: OSError | RuntimeError) -> int | None:
    """Returns the system's number of a want of room, or None if the error is another."""
    if isinstance(error, OSError):
        return error.errno if error.errno in CANNOT_WRITE else None
    # torch's own writer does not say why; of a disk that can be read, want of room is all there is.
    return errno.ENOSPC if re.search("inline_container|iostream|PytorchStreamWriter", str(error)) else None


def _append_digest(path: Path) -> None:
    with path.open("r+b") as file:
        content_length = file.seek(0, os.SEEK_END) - 2
        file.seek(content_length - 20)
        if file.read(4) != _END_OF_ARCHIVE or file.read(16) is None or file.read(2) != b"\x00\x00":
            raise RuntimeError(
                "torch.save no longer ends in a zip end record without comment: mend lit_cnn.training.checkpoints"
            )
        file.seek(0)
        digest = _digest_of_first(file, content_length)
        file.seek(content_length)
        file.write(struct.pack("<H", _COMMENT_LENGTH) + _PREFIX + digest.encode())


def _check_bytes(path: Path) -> bool:
    """Refuses a file that is not as it was written; returns whether it has our digest.

    A file that was cut short is told from one without a digest by its end: that of an archive whose last record says
    that no comment follows. Ours say that 71 bytes follow, so none of their beginnings ends like that.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content_length = size - _COMMENT_LENGTH - 2
        file.seek(max(0, content_length))
        end = file.read()
        # The comment's length is the one part of the file that the digest does not cover.
        expected = struct.pack("<H", _COMMENT_LENGTH) + _PREFIX
        if content_length > 0 and end.startswith(expected):
            file.seek(0)
            if _digest_of_first(file, content_length) != end[len(expected) :].decode(errors="replace"):
                reason = "was changed after it was written (SHA-256 differs)"
                raise UsageError("ckpt_path", path, reason, "give another")
            return True
        last = end[-_END_LENGTH:]
        if last.startswith(_END_OF_ARCHIVE) and last.endswith(b"\0\0") and _checksums_agree(file):
            return False
    raise UsageError("ckpt_path", path, "is not a checkpoint of lit_cnn, or was cut short", "give a whole one")


def _checksums_agree(file: Any) -> bool:
    """Whether a zip archive is one of stored files, as PyTorch writes it, with the checksums that it says they have."""
    try:
        with zipfile.ZipFile(file) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and archive.testzip() is None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError):
        return False


def _is_classifiers(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return False
    hparams = checkpoint.get("hyper_parameters")
    return isinstance(hparams, dict) and hparams.keys() >= _HPARAMS


def _digest_of_first(file: Any, num_bytes: int) -> str:
    digest = hashlib.sha256()
    while num_bytes > 0 and (block := file.read(min(num_bytes, 1 << 20))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.hexdigest()
