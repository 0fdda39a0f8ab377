"""Configuration of the pipelined engine: a DeepSpeed configuration with one more section, ``gossamer``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["PipelineConfig", "load_config"]

CROSS_CHUNK_GRADIENTS = ("rescaled", "detached", "stale")
BACKENDS = ("auto", "deepspeed", "torch")


@dataclass(frozen=True)
class PipelineConfig:
    """The ``gossamer`` section.

    Attributes:
        num_chunks: pieces of the graph that flow through the stages; None takes 4 per stage, 1 trains without
            chunks (synchronous full-graph training, one stage at work at a time).
        refresh_period: epochs between two snapshots of the historical embeddings (technique 2); 1 turns the
            technique off: history is then the last epoch's value.
        shuffle: draw a new chunk order every epoch (technique 1).
        cross_chunk_gradient: "rescaled" drops stale gradients and doubles those that cross chunks (technique 3);
            "detached" drops them only; "stale" keeps the last epoch's.
        recompute: run the layers of a chunk again in the backward pass instead of storing what is between
            aggregations.
        stage_bounds: first layer of every stage but the first; None balances the aggregations.
        seed: chunk order of every epoch.
        backend: "deepspeed", "torch" (torch's optimizer alone) or "auto": deepspeed where the job has been launched
            with several workers.
    """

    num_chunks: int | None = None
    refresh_period: int = 23
    shuffle: bool = True
    cross_chunk_gradient: str = "rescaled"
    recompute: bool = False
    stage_bounds: tuple[int, ...] | None = None
    seed: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        _require(self.num_chunks is None or self.num_chunks >= 1, "num_chunks", "at least 1", self.num_chunks)
        _require(self.refresh_period >= 1, "refresh_period", "at least 1", self.refresh_period)
        _require(
            self.cross_chunk_gradient in CROSS_CHUNK_GRADIENTS,
            "cross_chunk_gradient",
            f"one of {', '.join(CROSS_CHUNK_GRADIENTS)}",
            self.cross_chunk_gradient,
        )
        _require(self.backend in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", self.backend)

    def chunks_for(self, num_stages: int, num_nodes: int) -> int:
        """The number of chunks for a number of stages, checked."""
        num_chunks = min(4 * num_stages, num_nodes) if self.num_chunks is None else self.num_chunks
        _require(
            num_chunks == 1 or num_chunks >= num_stages,
            "num_chunks",
            f"1 or at least the number of stages ({num_stages})",
            num_chunks,
        )
        _require(num_chunks <= num_nodes, "num_chunks", f"at most the number of nodes ({num_nodes})", num_chunks)
        return num_chunks


def load_config(config: dict[str, Any] | str | os.PathLike | None) -> tuple[PipelineConfig, dict[str, Any]]:
    """Split a configuration (a dictionary or a JSON file) into the ``gossamer`` section and DeepSpeed's part."""
    whole: dict[str, Any] = _read(config) if isinstance(config, str | os.PathLike) else config or {}
    deepspeed = {key: value for key, value in whole.items() if key != "gossamer"}
    section = whole.get("gossamer", {})
    known = {field.name for field in fields(PipelineConfig)}
    unknown = sorted(set(section) - known)
    _require(not unknown, "config", f"made of {', '.join(sorted(known))}", unknown)
    if section.get("stage_bounds") is not None:
        section = section | {"stage_bounds": tuple(section["stage_bounds"])}
    return PipelineConfig(**section), deepspeed


def _read(path: str | os.PathLike) -> dict[str, Any]:
    with open(path) as file:
        try:
            whole = json.load(file)
        except ValueError as error:
            raise ValueError(f"initialize: config must be JSON, got {error} in {os.fspath(path)}") from error
    _require(isinstance(whole, dict), "config", "a JSON object", type(whole).__name__)
    return whole


def _require(condition: bool, name: str, requirement: str, value: object) -> None:
    if not condition:
        raise ValueError(f"initialize: {name} must be {requirement}, got {value!r}")
