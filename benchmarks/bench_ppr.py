"""ppr_neighbors: seeds per second, and how much of the exact neighbourhood is found."""

from __future__ import annotations

from sampling_data import batches, rmat

from gossamer.graph import ppr_neighbors

import harness

CAPABILITY = "Sampling"
SIZES = "top 200, alpha 0.15, R-MAT 2^16 nodes, 1 M edges"


def seeds_per_second(eps: float) -> harness.Figure:
    graph, (seeds,) = rmat(16), batches(16, 1, 256)
    time = harness.compare({"ours": lambda: ppr_neighbors(graph, seeds, top_k=200, eps=eps)})["ours"]
    return harness.Figure(256 / time.median / 1e3, f"256 seeds in {time}")


@harness.goal(CAPABILITY, f"PPR {SIZES}, eps 1e-4", at_least=40, unit="k seeds/s")
def ppr_coarse() -> harness.Figure:
    return seeds_per_second(1e-4)


@harness.goal(CAPABILITY, f"PPR {SIZES}, eps 1e-5", at_least=5, unit="k seeds/s")
def ppr_fine() -> harness.Figure:
    return seeds_per_second(1e-5)


@harness.goal(CAPABILITY, f"PPR {SIZES}, eps 5e-6", at_least=5, unit="k seeds/s")
def ppr_finer() -> harness.Figure:
    return seeds_per_second(5e-6)


@harness.goal(CAPABILITY, f"PPR {SIZES}, eps 5e-6: share of the exact top 200 found", at_least=0.99, unit="share")
def ppr_overlap() -> harness.Figure:
    graph, (seeds,) = rmat(16), batches(16, 1, 64)
    seeds = seeds[graph.in_degree()[seeds] > 0]
    exact = ppr_neighbors(graph, seeds, top_k=200, eps=1e-8)[0]
    detail = []
    for eps in (5e-6, 1e-5, 1e-4):
        found = ppr_neighbors(graph, seeds, top_k=200, eps=eps)[0]
        shares = [len(set(a) & set(b)) / 200 for a, b in zip(exact.tolist(), found.tolist())]
        detail.append(sum(shares) / len(shares))
    return harness.Figure(detail[0], f"eps 1e-5: {detail[1]:.4f}, eps 1e-4: {detail[2]:.4f}; exact is eps 1e-8")


if __name__ == "__main__":
    harness.main()
