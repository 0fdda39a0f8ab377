"""Configuration of the pipelined engine: a DeepSpeed configuration with one more section, ``gossamer``."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from typing import Any

from gossamer._arguments import typed
from gossamer.distributed.cross_gradient import CROSS_CHUNK_GRADIENTS
from gossamer.distributed.history import HISTORY_DTYPES

__all__ = ["PipelineConfig", "load_config"]

UNSERVED = ("bf16", "fp16", "amp")  # the engine's boundaries and history have the dtype of the features
MAX_SEED = 2**32 - 1
CHOICES = {
    "mode": ("stale", "exact"),
    "cross_chunk_gradient": CROSS_CHUNK_GRADIENTS,
    "history_start": ("zero", "exact"),
    "history_dtype": HISTORY_DTYPES,
    "backend": ("auto", "deepspeed", "torch"),
}


@dataclass(frozen=True)
class PipelineConfig:
    """The ``gossamer`` section.

    Attributes:
        mode: "stale" reads historical rows of chunks that have not come yet (GNNPipe). "exact" waits for the chunks
            that an aggregation reads, and for no others: the result of synchronous full-graph training, with as much
            overlap as the graph allows; the options of history, shuffle and cross_chunk_gradient play no part in it.
        num_ways: workers that share every stage, each with a part of the graph; the other factor of the number of
            workers is the number of stages. 1 is a pipeline, the number of workers graph parallelism.
        num_chunks: pieces of every way's part that flow through the stages; None takes 4 per stage, 16 in mode
            "exact" (1 where several ways share one stage), 1 trains without chunks (synchronous full-graph training,
            one stage at work at a time).
        refresh_period: epochs between two snapshots of the historical embeddings (technique 2); 1 turns the
            technique off: history is then the last epoch's value.
        refresh_distance: take the rows of a chunk anew as soon as |current - historical| > refresh_distance |current|
            for its mean rows of all layers; None waits for ``refresh_period``. Only with num_ways=1.
        history_start: what epoch 0 reads as history: "zero", or "exact", the rows of an exact pass before it.
        history_dtype: "full" keeps the snapshot in the dtype of the features, "bfloat16" rounds it to nearest, "int8"
            keeps 8 bits per element and one scale per row, rounded without bias.
        shuffle: draw a new chunk order every epoch (technique 1).
        cross_chunk_gradient: "rescaled" drops stale gradients and doubles those that cross chunks (technique 3);
            "detached" drops them only; "stale" keeps the last epoch's; "positional" drops them and weights by the
            chunk's position, right in expectation for any depth as chunks get many; "compensated" uses the last
            epoch's as a control variate of the doubled ones.
        recompute: run the layers of a chunk again in the backward pass instead of storing what is between
            aggregations; with one chunk and one way a segment of layers at a time, aggregations included.
        boundary_bits: what crosses a stage boundary in training: None leaves states and gradients as they are, 8 or 4
            rounds their rows to so many bits per element, without bias.
        split_backward: send the input gradients of all chunks first and compute the parameter gradients after them
            (2BP): more memory, a smaller bubble, the same gradients.
        stage_bounds: first layer of every stage but the first; None balances the aggregations.
        seed: chunk order of every epoch.
        backend: "deepspeed", "torch" (torch's optimizer alone) or "auto": deepspeed where the job has been launched
            with several workers.
    """

    mode: str = "stale"
    num_ways: int = 1
    num_chunks: int | None = None
    refresh_period: int = 23
    refresh_distance: float | None = None
    history_start: str = "zero"
    history_dtype: str = "full"
    shuffle: bool = True
    cross_chunk_gradient: str = "rescaled"
    recompute: bool = False
    boundary_bits: int | None = None
    split_backward: bool = False
    stage_bounds: tuple[int, ...] | None = None
    seed: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        _require(_is_int(self.num_ways, 1), "num_ways", "an int of at least 1", self.num_ways)
        optional = self.num_chunks is None
        _require(optional or _is_int(self.num_chunks, 1), "num_chunks", "None or an int of at least 1", self.num_chunks)
        _require(_is_int(self.refresh_period, 1), "refresh_period", "an int of at least 1", self.refresh_period)
        for name in ("shuffle", "recompute", "split_backward"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, "true or false", value)
        _require(_is_int(self.seed, 0, MAX_SEED), "seed", "an int in [0, 2^32)", self.seed)
        _require(self.boundary_bits in (None, 8, 4), "boundary_bits", "None, 8 or 4", self.boundary_bits)
        bounds = self.stage_bounds
        _require(
            bounds is None or (isinstance(bounds, tuple) and all(_is_int(bound, 1) for bound in bounds)),
            "stage_bounds",
            "None or layer numbers of at least 1",
            bounds,
        )
        distance = self.refresh_distance
        positive = isinstance(distance, int | float) and not isinstance(distance, bool) and 0 < distance < math.inf
        _require(distance is None or positive, "refresh_distance", "None or a positive number", distance)
        keeps_none = self.refresh_period == 1 or self.num_ways > 1
        _require(
            not keeps_none or distance is None,
            "refresh_distance",
            "None where refresh_period is 1 or num_ways above 1",
            distance,
        )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        if self.mode == "exact":
            _require(self.boundary_bits is None, "boundary_bits", "None in mode 'exact'", self.boundary_bits)
            _require(not self.split_backward, "split_backward", "false in mode 'exact'", self.split_backward)

    def chunks_for(self, num_stages: int, num_nodes: int) -> int:
        """The number of chunks for a number of stages, checked."""
        _require(self.num_ways <= num_nodes, "num_ways", f"at most the number of nodes ({num_nodes})", self.num_ways)
        per_stage = 16 if self.mode == "exact" else 4
        default = 1 if self.num_ways > 1 and num_stages == 1 else min(per_stage * num_stages, num_nodes)
        num_chunks = default if self.num_chunks is None else self.num_chunks
        _require(
            num_chunks == 1 or num_chunks >= num_stages,
            "num_chunks",
            f"1 or at least the number of stages ({num_stages})",
            num_chunks,
        )
        _require(num_chunks <= num_nodes, "num_chunks", f"at most the number of nodes ({num_nodes})", num_chunks)
        return num_chunks


@typed
def load_config(config: dict[str, Any] | str | os.PathLike | None) -> tuple[PipelineConfig, dict[str, Any]]:
    """Split a configuration (a dictionary or a JSON file) into the ``gossamer`` section and DeepSpeed's part.

    Raises:
        ValueError: if a field is unknown or out of range, or if a section of DeepSpeed's cannot be served here.
        OSError: if the file cannot be read.
    """
    whole: dict[str, Any] = _read(config) if isinstance(config, str | os.PathLike) else config or {}
    _require(isinstance(whole, dict), "config", "a JSON object", type(whole).__name__)
    deepspeed = {key: value for key, value in whole.items() if key != "gossamer"}
    for name in UNSERVED:
        enabled = bool((deepspeed.get(name) or {}).get("enabled"))
        _require(not enabled, f"{name}.enabled", "false (a pipeline trains in the dtype of its features)", enabled)
    section = whole.get("gossamer", {})
    _require(isinstance(section, dict), "config['gossamer']", "a JSON object", section)
    known = {field.name for field in fields(PipelineConfig)}
    unknown = sorted(set(section) - known)
    _require(not unknown, "config", f"made of {', '.join(sorted(known))}", unknown)
    if isinstance(section.get("stage_bounds"), list):
        section = section | {"stage_bounds": tuple(section["stage_bounds"])}
    return PipelineConfig(**section), deepspeed


def _is_int(value: object, least: int, most: int | None = None) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and least <= value and (most is None or value <= most)  # type: ignore[operator]


def _read(path: str | os.PathLike) -> Any:
    with open(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"initialize: config must be JSON, got {error} in {os.fspath(path)}") from error


def _require(condition: bool, name: str, requirement: str, value: object) -> None:
    if not condition:
        raise ValueError(f"initialize: {name} must be {requirement}, got {value!r}")
