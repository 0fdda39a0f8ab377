"""What the simulator of clusters says for a graph of 10^9 edges on 8 to 1024 workers, and how far to believe it.

    python benchmarks/reproduce_scale.py        # a few minutes on one core

Writes docs/scale.md with its plot.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import paper_gnnpipe

from gossamer.distributed import Calibration, Cluster, Link, ScaleEstimate, ScaleJob, simulate_scale
from gossamer.graph import halo, partition

from environment import environment_line
from graphs import rmat
from reproduction import PAGES, plot, write_page

NODES, EDGES, WIDTH, FEATURES, STATES = 50_000_000, 1_000_000_000, 100, 128, 2
WORKERS = (8, 16, 32, 64, 128, 256, 512, 1024)
DEPTHS = (32, 128)
SMALL_SCALE, SMALL_WAYS = 14, (2, 4, 8, 16, 32)
KINDS = ("pipeline", "graph", "hybrid")
DOCS = PAGES.parent


@cache
def machine() -> paper_gnnpipe.Machine:
    return paper_gnnpipe.calibrate()


def clusters() -> dict[str, Cluster]:
    """That of the logs, and a newer one."""
    found = machine()
    return {
        f"4 workers per machine, {found.bandwidth / 1e9:.1f} GB/s between machines": replace(
            found.cluster(), overlap=True
        ),
        "8 workers per machine, 200 GB/s inside, 50 GB/s between": Cluster(8, Link(2e11, 1e-5), Link(5e10, 3e-5)),
    }


@cache
def calibration() -> Calibration:
    """Seconds per node and edge of a layer of width 100: a line through flickr (11 edges per node) and reddit (493)."""
    costs, degrees = [], []
    for name in ("flickr", "reddit"):
        logged = paper_gnnpipe.logged_seconds(name, 32, "pipeline")
        costs.append(paper_gnnpipe.layer_seconds(name, "GCNII", logged, machine()))
        degrees.append(paper_gnnpipe.GRAPHS[name].edges / paper_gnnpipe.GRAPHS[name].nodes)
    edge = (costs[1] - costs[0]) / (degrees[1] - degrees[0])
    node = costs[0] - edge * degrees[0]
    return Calibration(node / 3, edge / 3, 2 * node / 3, 2 * edge / 3, call=machine().call)


@cache
def measured_halo() -> dict[int, float]:
    """Halo over nodes of METIS cuts of an R-MAT graph of 2^14 nodes with as many edges per node."""
    graph = rmat(SMALL_SCALE, 2**SMALL_SCALE * EDGES // NODES)
    return {ways: halo(graph, partition(graph, ways)).shape[1] / graph.num_nodes for ways in SMALL_WAYS}


def metis_halo(num_ways: int) -> float:
    """The measured cuts, and beyond them their last power of the number of ways; at most all neighbours."""
    known, last = measured_halo(), SMALL_WAYS[-1]
    if num_ways in known:
        return known[num_ways]
    power = math.log2(known[last] / known[last // 2])
    return min(known[last] * (num_ways / last) ** power, random_halo(num_ways))


def random_halo(num_ways: int) -> float:
    """Expected for nodes spread at random, each read by EDGES / NODES others."""
    degree = EDGES / NODES
    return (num_ways - 1) * (1 - (1 - 1 / num_ways) ** degree)


def job(num_layers: int, ratio: Callable[[int], float], *, recompute: bool) -> ScaleJob:
    return ScaleJob(
        NODES, EDGES, num_layers, WIDTH, calibration(), ratio, num_states=STATES, num_features=FEATURES,
        input_node=machine().input_number * FEATURES / 2, recompute=recompute,
    )  # fmt: skip


def estimate(cluster: Cluster, num_layers: int, num_workers: int, num_ways: int, *, recompute: bool) -> ScaleEstimate:
    return simulate_scale(job(num_layers, metis_halo, recompute=recompute), cluster, num_workers, num_ways=num_ways)


@cache
def best(kind: str, cluster: Cluster, num_layers: int, num_workers: int) -> ScaleEstimate | None:
    """The fastest estimate of a kind, or None where it cannot use so many workers."""
    found = [
        estimate(cluster, num_layers, num_workers, ways, recompute=True)
        for ways in (2**i for i in range(num_workers.bit_length()))
        if num_workers // ways <= num_layers and {1: "pipeline", num_workers: "graph"}.get(ways, "hybrid") == kind
    ]
    return min(found, key=lambda each: each.seconds, default=None)


def rows(cluster: Cluster, num_layers: int) -> Iterator[str]:
    for num_workers in WORKERS:
        estimates = [e for kind in KINDS if (e := best(kind, cluster, num_layers, num_workers)) is not None]
        fastest = min(estimates, key=lambda e: e.seconds)
        for e in estimates:
            shape = f"{e.num_ways} x {e.num_stages}"
            mark = "**" if e is fastest else ""
            yield (
                f"| {num_workers} | {mark}{e.kind}{mark} | {shape} | {e.num_chunks} | {mark}{e.seconds:.2f}{mark} | "
                f"{e.total_bytes / 1e9:.0f} | {e.worker_bytes / 1e9:.2f} | {e.between_bytes / 1e9:.1f} | "
                f"{e.memory.total / 1e9:.1f} |"
            )


def memory_rows(cluster: Cluster) -> Iterator[str]:
    for num_layers, num_workers, kind in product(DEPTHS, (32, 128, 1024), KINDS):
        fastest = best(kind, cluster, num_layers, num_workers)
        for recompute in (False, True) if fastest else ():
            e = estimate(cluster, num_layers, num_workers, fastest.num_ways, recompute=recompute)
            parts = [
                getattr(e.memory, name) for name in ("graph", "features", "rows", "activations", "weights", "total")
            ]
            numbers = " | ".join(f"{part / 1e9:.2f}" for part in parts)
            yield f"| {num_layers} | {num_workers} | {kind} | {'yes' if recompute else 'no'} | {numbers} |"


def draw() -> None:
    with plot("scale", folder=DOCS, ncols=2, figsize=(11, 4)) as (_, axes):
        for axis, num_layers in zip(axes, DEPTHS):
            for cluster, style in zip(clusters().values(), ("-", "--")):
                for color, kind in enumerate(KINDS):
                    points = [(n, best(kind, cluster, num_layers, n)) for n in WORKERS]
                    shown = [(n, e.seconds) for n, e in points if e is not None]
                    label = f"{kind}, {'slow' if style == '-' else 'fast'} links"
                    axis.plot(*zip(*shown), style, color=f"C{color}", marker=".", label=label)
            axis.set(
                xscale="log", yscale="log", xlabel="workers", ylabel="seconds per epoch", title=f"{num_layers} layers"
            )
            axis.set_xticks(WORKERS, [str(n) for n in WORKERS])
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)


def last_digits(found: float, logged: str) -> float:
    """Difference after rounding, in units of the last digit that is logged."""
    digits = len(logged.split(".")[1])
    return abs(round(found, digits) - float(logged)) * 10**digits


def checks() -> str:
    m, times = machine(), list(paper_gnnpipe.time_misses(machine()))
    errors = {run: 100 * (found / logged - 1) for run, found, logged in times}
    lines = [f"| {run} | {logged} | {found:.3f} | {errors[run]:+.0f} % |" for run, found, logged in times]
    misses = [last_digits(found, logged) for _, found, logged in paper_gnnpipe.volume_misses()]
    exact, sizes = sum(miss < 0.5 for miss in misses), [abs(error) for error in errors.values()]
    return CHECKS.format(
        num_volumes=len(misses), exact=exact, call=m.call * 1e6, latency=m.latency * 1e6,
        inside=m.latency_inside * 1e6, rate=m.bandwidth / 1e9, num_times=len(times),
        median=statistics.median(sizes), worst=max(sizes), table="\n".join(lines),
    )  # fmt: skip


CHECKS = """## How far to believe it

**Bytes.** Of {num_volumes} volumes in the logs of GNNPipe ([arXiv 2308.10087](https://arxiv.org/abs/2308.10087)),
{exact} come out with every digit that is logged, the others within one unit of the last digit. The halo of graph
parallelism is taken from the logged ratio of vertex data, that of the hybrid from its GCN row.
`bytes_of_processes` in `benchmarks/bench_scale.py` compares them with what runs of 2 and 4 processes count.

**Seconds.** Nine epoch times of the logs settle the constants: {call:.0f} us per layer and chunk, latencies of
{latency:.0f} us between and {inside:.0f} us inside machines, {rate:.1f} GB/s (near the rate of 100 Gb/s links, which
nothing told it), and the compute per node of each graph. The other {num_times} are predicted with a median error of
{median:.0f} % and a largest of {worst:.0f} %:

| run | logged s | predicted s | error |
|---|---|---|---|
{table}

What it misses most is graph parallelism on reddit: parts are taken to be equal, while METIS balances nodes and not
edges. The halo of 4 and 16 ways, a power law through two known cuts, is the other guess in those rows.
"""
HEAD = (
    "| workers | kind | ways x stages | chunks | s per epoch | GB in all | GB per worker | GB out of a machine "
    "| GB of memory |"
)
INTRODUCTION = """# Scale on paper

What training on 8 to 1024 workers would cost, before there is a cluster: `gossamer.distributed.simulate_scale` takes
the bytes of the [planner's](pipelines.md) closed forms and the time of its schedules, with links that differ inside a
machine and between machines. Nothing on this page has run on such a cluster. One command writes it:
`python benchmarks/reproduce_scale.py`.

```python
from gossamer.distributed import Calibration, Cluster, Link, ScaleJob, simulate_scale

layer = Calibration(forward_node=25e-9, forward_edge=0.1e-9, backward_node=50e-9, backward_edge=0.3e-9)
job = ScaleJob(50_000_000, 10**9, 64, 100, layer, halo_ratio=lambda ways: 0.5 * ways**0.6)
cluster = Cluster(workers_per_machine=8, inside=Link(2e11, 1e-5), between=Link(5e10, 3e-5))
estimate = simulate_scale(job, cluster, 64, num_ways=8)
print(estimate.kind, estimate.seconds, estimate.total_bytes, estimate.memory.total)
```

## A graph of 10^9 edges

{nodes:,} nodes, {edges:,} edges, GCNII of width {width} (two states travel), {features} input features, the stale
pipeline with 4 chunks per stage, recomputation on, transfers beside the computation. A worker is a GPU of the logs (RTX
A5000: {node:.0f} ns per node and {edge:.2f} ns per edge and layer, forward and backward). The halo is that of METIS
cuts of an R-MAT graph of 2^{scale} nodes with as many edges per node (ways and halo over nodes: {halos}), continued
with its last power, and never more than that of a random cut; graphs with clusters cut better.

![Seconds per epoch](scale.png)
"""
MEMORY = """
The fastest of each number of workers is bold. A pipeline cannot have more stages than layers. "GB out of a machine" is
what the busiest machine sends to others in an epoch.

## Memory per worker

GB on the largest worker: its rows of the graph and its transpose, input features (first stage), rows of the
aggregations (current, historical, gradients; halo included), activations, weights with Adam. The engine as it is also
takes the whole graph and all features as arguments on every worker when it starts, {graph:.1f} and {features:.1f} GB
here.

| layers | workers | kind | recompute | graph | features | rows | activations | weights | all |
|---|---|---|---|---|---|---|---|---|---|
{table}

"""


def page() -> str:
    halos = ", ".join(f"{ways}: {ratio:.2f}" for ways, ratio in measured_halo().items())
    text = INTRODUCTION.format(
        nodes=NODES, edges=EDGES, width=WIDTH, features=FEATURES, node=calibration().forward_node * 3e9,
        edge=calibration().forward_edge * 3e9, scale=SMALL_SCALE, halos=halos,
    )  # fmt: skip
    for name, cluster in clusters().items():
        for num_layers in DEPTHS:
            table = "\n".join(rows(cluster, num_layers))
            text += f"\n### {num_layers} layers, {name}\n\n{HEAD}\n|{'---|' * 9}\n{table}\n"
    table = "\n".join(memory_rows(next(iter(clusters().values()))))
    whole = {"graph": (8 * NODES + 4 * EDGES) / 1e9, "features": 4 * NODES * FEATURES / 1e9}
    return f"{text}{MEMORY.format(table=table, **whole)}{checks()}\nMade on: {environment_line()}.\n"


def main() -> None:
    draw()
    print(write_page("scale", page(), folder=DOCS))


if __name__ == "__main__":
    main()
