"""Checkpoints: a folder per epoch, written whole or not at all, verified when read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from gossamer._arguments import typed
from gossamer.distributed.channel import first_line

if TYPE_CHECKING:
    from gossamer.distributed.engine import PipelineEngine

__all__ = ["find_checkpoint", "find_latest", "load", "save", "write_checkpoint"]

_FORMAT = 3
_MANIFEST = "manifest.json"
_NAME = re.compile(r"epoch_(\d{6,})")
_KEPT = 2
_FAILED_WRITE = re.compile(r"unexpected pos|[Ww]riter? fail|failed writing|iostream", re.ASCII)


def save(engine: PipelineEngine, folder: str) -> str:
    """Write the state of all workers as ``folder/epoch_NNNNNN``; older checkpoints beyond two are removed."""

    def write(path: str) -> None:
        engine._worker.backend.save(path)
        state = {"chunks": engine._worker.chunked.state_dict(), "random_state": torch.get_rng_state()}
        torch.save(state, os.path.join(path, f"worker_{engine.rank:02d}.pt"))

    return write_checkpoint(
        folder, _describe(engine), write, is_first=engine.rank == 0, barrier=engine._channel.barrier
    )


def load(engine: PipelineEngine, folder: str) -> None:
    """Restore all workers from the newest checkpoint under ``folder``, or from ``folder`` itself."""
    path, manifest = find_checkpoint(folder, _describe(engine))
    try:
        engine._worker.backend.load(path)
    except RuntimeError as error:  # torch: missing or unexpected names, or other shapes
        raise ValueError(f"load_checkpoint: model must be the one that was saved, got {error}") from error
    device = engine._worker.chunked.graph.rowptr.device
    state = torch.load(os.path.join(path, f"worker_{engine.rank:02d}.pt"), weights_only=True, map_location=device)
    engine._worker.chunked.load_state_dict(state["chunks"])
    torch.set_rng_state(state["random_state"].cpu())
    engine.epoch = manifest["epoch"]
    engine._channel.barrier()


def write_checkpoint(
    folder: str,
    description: dict[str, Any],
    write: Callable[[str], None],
    *,
    is_first: bool,
    barrier: Callable[[], None],
) -> str:
    """Write ``folder/epoch_NNNNNN``, whole or not at all; older checkpoints beyond two are removed.

    Args:
        folder: of all checkpoints.
        description: what ``find_checkpoint`` compares; its "epoch" names the checkpoint.
        write: what every worker does to fill the folder that it is given.
        is_first: true on one worker.
        barrier: waits for all workers.

    Raises:
        OSError: if the disk is full or fails; the checkpoints that were there are as before, and what was begun of
            this one is removed by the next call.
    """
    name = f"epoch_{description['epoch']:06d}"
    target, partial = os.path.join(folder, name), os.path.join(folder, f".{name}.partial")
    if is_first:
        for left_over in glob.glob(os.path.join(glob.escape(folder), ".epoch_*.partial")):
            shutil.rmtree(left_over)
        os.makedirs(partial)
    barrier()
    with _failing_disk_said(folder):
        write(partial)
    barrier()
    if is_first:
        with _failing_disk_said(folder):
            _write_manifest(partial, {"format": _FORMAT} | description)
        if os.path.exists(target):
            shutil.rmtree(target)
        os.rename(partial, target)
        _sync(folder)
        others = [path for _, path in _checkpoints(folder) if path != target]
        for old in others[: len(others) - (_KEPT - 1)]:
            shutil.rmtree(old)
    barrier()
    return target


@contextmanager
def _failing_disk_said(folder: str) -> Iterator[None]:
    """Torch's writer says of a full disk that it is at an "unexpected pos"."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        if isinstance(error, RuntimeError) and not _FAILED_WRITE.search(reason):
            raise
        raise OSError(
            f"save_checkpoint: folder must have room for the checkpoint, got a failing write to {folder!r} ({reason}). "
            "The checkpoints that were there are as before; make room and resume from the newest."
        ) from error


def find_checkpoint(folder: str, description: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The newest checkpoint under ``folder``, or ``folder`` itself: its path and its verified description.

    Raises:
        ValueError: if there is none, a file is damaged, or it differs from ``description`` in more than the epoch.
    """
    path = folder if os.path.isfile(os.path.join(folder, _MANIFEST)) else find_latest(folder)
    if path is None:
        raise ValueError(f"load_checkpoint: folder must hold a checkpoint, got {folder!r}")
    manifest = _verify(path)
    for key, value in ({"format": _FORMAT} | description).items():
        if key != "epoch" and manifest.get(key) != value:
            raise ValueError(f"load_checkpoint: {key} must be the checkpoint's {manifest.get(key)!r}, got {value!r}")
    return path, manifest


@typed
def find_latest(folder: str | os.PathLike) -> str | None:
    """The newest complete checkpoint under ``folder``, or None."""
    found = _checkpoints(os.fspath(folder))
    return found[-1][1] if found else None


def _checkpoints(folder: str) -> list[tuple[int, str]]:
    if not os.path.isdir(folder):
        return []
    matches = ((_NAME.fullmatch(name), os.path.join(folder, name)) for name in os.listdir(folder))
    return sorted((int(m[1]), path) for m, path in matches if m and os.path.isfile(os.path.join(path, _MANIFEST)))


def _describe(engine: PipelineEngine) -> dict[str, Any]:
    """What a checkpoint must agree on with the engine that reads it."""
    return {
        "epoch": engine.epoch,
        "num_stages": engine.num_stages,
        "num_ways": engine.num_ways,
        "stage_bounds": list(engine.stage_bounds),
        "num_chunks": engine.num_chunks,
        "mode": engine.config.mode,
        "num_nodes": engine.num_nodes,
        "backend": type(engine._worker.backend).__name__,
        "refresh_period": engine.config.refresh_period,
        "refresh_distance": engine.config.refresh_distance,
        "history_dtype": engine.config.history_dtype,
        "shuffle": engine.config.shuffle,
        "cross_chunk_gradient": engine.config.cross_chunk_gradient,
        "seed": engine.config.seed,
    }


def _write_manifest(folder: str, description: dict[str, Any]) -> None:
    names = sorted(
        os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder) for name in names
    )
    files = {
        name: {"bytes": os.path.getsize(path := os.path.join(folder, name)), "sha256": _digest(path)} for name in names
    }
    for name in names:
        _sync(os.path.join(folder, name))
    with open(os.path.join(folder, _MANIFEST), "w") as file:
        json.dump(description | {"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _verify(path: str) -> dict[str, Any]:
    try:
        with open(os.path.join(path, _MANIFEST)) as file:
            manifest = json.load(file)
        files = manifest["files"].items()
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"load_checkpoint: manifest must be readable, got {error} in {path}") from error
    for name, expected in files:
        file_path = os.path.join(path, name)
        if not os.path.isfile(file_path):
            raise ValueError(f"load_checkpoint: checkpoint must be complete, got no file {name} in {path}")
        size = os.path.getsize(file_path)
        if size != expected["bytes"] or _digest(file_path) != expected["sha256"]:
            raise ValueError(f"load_checkpoint: {name} must be as it was written, got an altered file in {path}")
    return manifest


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
