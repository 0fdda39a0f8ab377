"""Files that appear whole or not at all, and small ones that are checked as a whole when read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["read_sealed", "sync_folder", "whole_or_not_at_all", "write_sealed"]


@contextlib.contextmanager
def whole_or_not_at_all(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to; it takes the place of ``path`` when the block ends well, and is on the disk by then."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring new names to the disk too; some systems cannot open folders, and lose nothing but that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_sealed(path: str | os.PathLike[str], magic: bytes, content: bytes) -> None:
    """Write magic, the SHA-256 of the content, and the content."""
    with whole_or_not_at_all(path) as file:
        file.write(magic + hashlib.sha256(content).digest() + content)


def read_sealed(path: str | os.PathLike[str], magic: bytes, function: str, writer: str) -> bytes:
    """The content of a file of ``write_sealed``.

    Raises:
        OSError: if the file cannot be read.
        ValueError: in the name of ``function``, if it is not a file of ``writer``, or not as it was written.
    """
    data = Path(path).read_bytes()
    digest, content = data[len(magic) :][:32], data[len(magic) + 32 :]
    if not data.startswith(magic) or digest != hashlib.sha256(content).digest():
        raise ValueError(f"{function}: path must be an undamaged file of {writer}, got {os.fspath(path)!r}")
    return content
