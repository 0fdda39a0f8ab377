"""What GNNPipe's logs say about bytes and seconds, and the simulator calibrated on some of it.

Logged on 2 machines of 4 GPUs each (RTX A5000), 32 layers, 32 chunks, hidden width 100 (squirrel 1000), 2 ways in the
hybrid. Nine of the logged epoch times settle nine unknowns; the others are predicted:

- the machine: seconds per call, latencies inside and between machines, bytes per second of a link, seconds per number
  of the input. From the pipeline at 128 layers and graph parallelism at 32, on flickr and physics, and flickr's hybrid;
- per graph, seconds per node and layer, from the pipeline at 32 layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from gossamer.distributed import Calibration, Cluster, Link, ScaleEstimate, ScaleJob, simulate_scale

GIB = 2**30
NUM_GPUS = 8
WAYS = {"graph": 8, "pipeline": 1, "hybrid": 2}  # in the order of the columns below


@dataclass(frozen=True)
class Graph:
    """ratio: logged bytes of graph parallelism over those of the pipeline, vertex data alone; it gives the halo."""

    nodes: int
    edges: int
    features: int
    classes: int
    hidden: int
    ratio: float

    @property
    def halo_ratio(self) -> float:
        """Of the cut into eight: ratio = layers * halo_ratio / (stages - 1)."""
        return self.ratio * (NUM_GPUS - 1) / 32


GRAPHS = {
    "squirrel": Graph(5_201, 401_907, 2089, 5, 1000, 10.15),
    "flickr": Graph(89_250, 989_006, 500, 7, 100, 9.85),
    "reddit": Graph(232_965, 114_800_000, 602, 41, 100, 11.92),
    "physics": Graph(34_493, 530_417, 8415, 5, 100, 4.54),
}
MODELS = ("GCN", "SAGE", "GCNII", "ResGCN+")

# GiB per epoch, 32 layers, as logged: graph parallelism, pipeline, hybrid.
VOLUMES = {
    ("squirrel", "GCN"): ("4.43", "0.271", "1.38"),
    ("squirrel", "SAGE"): ("6.10", "0.271", "1.61"),
    ("squirrel", "GCNII"): ("4.53", "0.54", "1.51"),
    ("squirrel", "ResGCN+"): ("6.20", "0.271", "1.63"),
    ("flickr", "GCN"): ("4.60", "0.465", "2.00"),
    ("flickr", "GCNII"): ("", "0.93", "2.19"),
    ("reddit", "GCN"): ("14.50", "1.215", "5.87"),
    ("reddit", "GCNII"): ("", "2.43", "6.39"),
    ("physics", "GCN"): ("0.88", "0.180", "0.62"),
    ("physics", "GCNII"): ("", "0.36", "0.70"),
}

# Seconds per epoch of GCNII by (graph, layers): graph parallelism, pipeline, hybrid.
SECONDS = {
    ("squirrel", 8): (0.052, 0.048, None),
    ("squirrel", 32): (0.198, 0.108, 0.140),
    ("squirrel", 128): (0.754, 0.341, None),
    ("flickr", 8): (0.040, 0.049, None),
    ("flickr", 16): (0.079, 0.064, None),
    ("flickr", 32): (0.166, 0.095, 0.116),
    ("flickr", 64): (0.313, 0.159, None),
    ("flickr", 128): (0.619, 0.284, None),
    ("reddit", 32): (0.902, 0.415, 0.449),
    ("physics", 32): (0.060, 0.108, 0.105),
    ("physics", 128): (0.220, 0.255, None),
}
# Strong scaling of the 32-layer GCN on reddit, by the number of GPUs: graph parallelism, pipeline.
STRONG = {2: (1.22, 1.11), 4: (0.93, 0.60), 8: (0.85, 0.35), 16: (0.85, 0.26)}
CALIBRATED_ON = {
    *((name, 32, "pipeline") for name in GRAPHS),
    *((name, 128, "pipeline") for name in ("flickr", "physics")),
    *((name, 32, "graph") for name in ("flickr", "physics")),
    ("flickr", 32, "hybrid"),
}


def num_weights(name: str, model: str, num_layers: int = 32) -> int:
    """Of the models as the paper's code defines them; SAGE convolutions have two matrices."""
    g = GRAPHS[name]
    ends, square = g.features * g.hidden + g.hidden * g.classes, g.hidden**2
    return {
        "GCN": ends + (num_layers - 2) * square,
        "SAGE": 2 * (ends + (num_layers - 2) * square),
        "GCNII": ends + num_layers * square,
        "ResGCN+": ends + 2 * num_layers * square,
    }[model]


@cache
def two_way_halo(name: str) -> float:
    """Halo ratio of the cut into two, from the logged bytes of the hybrid GCN."""
    g = GRAPHS[name]
    rest = estimate(name, "GCN", "hybrid", halo={2: 0.0}).total_bytes
    return (float(VOLUMES[name, "GCN"][2]) * GIB - rest) / (2 * 32 * g.nodes * g.hidden * 4)


def halo_ratio(name: str, num_ways: int) -> float:
    """Through the two known cuts, as a power of the number of ways."""
    two, eight = two_way_halo(name), GRAPHS[name].halo_ratio
    return two * (num_ways / 2) ** (math.log(eight / two) / math.log(4))


@dataclass(frozen=True)
class Machine:
    """One GPU and the links of the cluster; the defaults are what ``calibrate`` finds (a row checks it)."""

    call: float = 9.2315e-05
    latency: float = 1.3492e-04
    latency_inside: float = 1.3492e-04
    bandwidth: float = 1.1673e10
    input_number: float = 1.4716e-10

    def cluster(self) -> Cluster:
        """A barrier after each chunk: transfers hide behind nothing."""
        links = [Link(self.bandwidth, latency) for latency in (self.latency_inside, self.latency)]
        return Cluster(4, *links, overlap=False)


def estimate(
    name: str,
    model: str,
    kind: str,
    *,
    num_layers: int = 32,
    num_gpus: int = NUM_GPUS,
    layer_node: float = 0.0,
    machine: Machine | None = None,
    halo: dict[int, float] | None = None,
) -> ScaleEstimate:
    """The simulator on one of the logged runs; ``layer_node``: seconds per node of a layer, forward and backward."""
    g, machine = GRAPHS[name], machine or Machine()
    num_ways = num_gpus if kind == "graph" else WAYS[kind]
    job = ScaleJob(
        g.nodes, g.edges, num_layers, g.hidden,
        Calibration(layer_node / 3, 0.0, 2 * layer_node / 3, 0.0, call=machine.call),
        halo_ratio=halo.__getitem__ if halo else lambda ways: g.halo_ratio if ways == 8 else halo_ratio(name, ways),
        num_states=2 if model == "GCNII" else 1,
        num_weights=num_weights(name, model, num_layers),
        num_features=g.features,
        input_node=machine.input_number * g.features / 2,
    )  # fmt: skip
    return simulate_scale(job, machine.cluster(), num_gpus, num_ways=num_ways)


def layer_seconds(name: str, model: str, logged: float, machine: Machine) -> float:
    """Seconds per node of a layer for which the 32-layer pipeline takes ``logged`` seconds (it is linear in them)."""
    none, one = (estimate(name, model, "pipeline", layer_node=x, machine=machine).seconds for x in (0.0, 1.0))
    return (logged - none) / (one - none)


def calibrate() -> Machine:
    """The five numbers of the machine that reproduce five epoch times."""
    import numpy as np
    from scipy.optimize import least_squares

    targets = [run for run in sorted(CALIBRATED_ON) if run[1:] != (32, "pipeline")]

    def misses(logs: np.ndarray) -> list[float]:
        machine = Machine(*np.exp(logs))
        return [math.log(seconds_of(*run, machine) / logged_seconds(*run)) for run in targets]

    start = np.log([1e-4, 1e-4, 5e-5, 1e10, 1e-10])
    return Machine(*(float(x) for x in np.exp(least_squares(misses, start, diff_step=1e-2).x)))


def logged_seconds(name: str, num_layers: int, kind: str) -> float | None:
    """Of GCNII; None where nothing is logged."""
    return SECONDS[name, num_layers][list(WAYS).index(kind)]


def seconds_of(name: str, num_layers: int, kind: str, machine: Machine) -> float:
    """Of GCNII, by the simulator, with the graph calibrated on the 32-layer pipeline."""
    layer_node = layer_seconds(name, "GCNII", logged_seconds(name, 32, "pipeline"), machine)
    return estimate(name, "GCNII", kind, num_layers=num_layers, layer_node=layer_node, machine=machine).seconds


def volume_misses() -> Iterator[tuple[str, float, str]]:
    """(run, GiB of the simulator, GiB as logged), for all but what gave the halo of two ways."""
    for (name, model), logged in VOLUMES.items():
        for kind, value in zip(WAYS, logged):
            if value and (kind, model) != ("hybrid", "GCN"):
                yield f"{name} {model} {kind}", estimate(name, model, kind).total_bytes / GIB, value


def time_misses(machine: Machine) -> Iterator[tuple[str, float, float]]:
    """(run, seconds of the simulator, logged seconds) of the runs that were not calibrated on."""
    for name, depth in SECONDS:
        for kind in WAYS:
            logged = logged_seconds(name, depth, kind)
            if logged is not None and (name, depth, kind) not in CALIBRATED_ON:
                yield f"{name}, {depth} layers, {kind}", seconds_of(name, depth, kind, machine), logged
    layer_node = layer_seconds("reddit", "GCN", STRONG[NUM_GPUS][1], machine)
    for num_gpus, both in STRONG.items():
        for kind, value in zip(("graph", "pipeline"), both):
            if (num_gpus, kind) != (NUM_GPUS, "pipeline"):
                found = estimate("reddit", "GCN", kind, num_gpus=num_gpus, layer_node=layer_node, machine=machine)
                yield f"reddit GCN, {num_gpus} GPUs, {kind}", found.seconds, value
