"""LiGNN's grouping and slicing: neighbourhood queries counted, and slices against the union to the bit."""

from __future__ import annotations

import torch
from sampling_data import rmat

from gossamer.graph import group_and_slice, neighbor_sample

import harness

CAPABILITY = "Sampling"
MEMBERS, INTERACTIONS = 1000, 10


def members() -> torch.Tensor:
    """[10 000] members in random order, ten interactions each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(1 << 16, generator=generator)[:MEMBERS].repeat_interleave(INTERACTIONS)
    return ids[torch.randperm(len(ids), generator=generator)]


@harness.goal(CAPABILITY, "grouping g = 5, 10 interactions each: fewer member queries", at_least=5, unit="x")
def grouping_queries() -> harness.Figure:
    _, offsets = group_and_slice(members(), 5)
    queries = len(offsets) - 1
    return harness.Figure(len(members()) / queries, f"{queries} instead of {len(members())}, counted")


@harness.goal(CAPABILITY, "grouping g = 5: slices that differ from the union in a bit", at_most=0, unit="slices")
def grouping_exact() -> harness.Figure:
    graph, group_ids = rmat(16), members()
    order, offsets = group_and_slice(group_ids, 5)
    unique = group_ids.unique()
    union = neighbor_sample(graph, unique, [10], seed=0)
    begins = torch.searchsorted(union.col, torch.arange(len(unique) + 1)).tolist()
    wrong = 0
    for begin in offsets[:-1].tolist():
        member = group_ids[order[begin]]
        place = int(torch.searchsorted(unique, member))
        alone = neighbor_sample(graph, member[None], [10], seed=0).edge
        wrong += not torch.equal(alone, union.edge[begins[place] : begins[place + 1]])
    return harness.Figure(wrong, f"{len(offsets) - 1} slices, {len(union.edge)} edges")


if __name__ == "__main__":
    harness.main()
