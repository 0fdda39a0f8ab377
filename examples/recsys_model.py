"""The encoder-decoder of LiGNN: a temporal encoder of members, a second encoder of items, a decoder of pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.graph import IDEmbedding, SampledSAGE, TemporalSAGE, long_term_loss
from gossamer.graph.loader_source import SampledBatch

from recsys_batches import item_neighborhood
from recsys_data import Task

__all__ = ["Inputs", "Recommender", "auc", "inputs_of", "losses"]


class Inputs(NamedTuple):
    """A batch with the features of its nodes: learned rows beside content."""

    batch: SampledBatch
    members: Tensor
    items: Tensor
    events: Tensor


def inputs_of(batch: SampledBatch, task: Task, ids: IDEmbedding) -> Inputs:
    """Features of the members' and the items' neighbourhoods and of the events (zeros behind the last)."""
    event = batch.features["event"]
    nodes = [batch.subgraph.node, batch.features["item_node"], event]
    rows = [ids(node, task.content[node.clamp(min=0)]) for node in nodes]
    rows[2] = rows[2] * (event >= 0)[..., None]
    return Inputs(batch, *rows)


class Recommender(nn.Module):
    """Logits of (member, item) pairs, and what the long-term loss compares.

    Args:
        in_channels: width of the node features.
        hidden: width between layers.
        dim: width of the embeddings of members and items.
        num_layers: hops.
        max_events: events of a sequence.
        num_future: events that the long-term loss foretells (N2 of the paper).
    """

    def __init__(
        self, in_channels: int, hidden: int, dim: int, *, num_layers: int = 2, max_events: int, num_future: int
    ) -> None:
        super().__init__()
        self.num_future = num_future
        self.member = TemporalSAGE(
            in_channels, hidden, dim, num_layers, event_channels=in_channels, max_events=max_events
        )
        self.item = SampledSAGE(in_channels, hidden, dim, num_layers)
        self.decoder = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.foretell = nn.Linear(dim, in_channels)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits [2, num_pairs] of the positives and the negatives, and the long-term loss."""
        found = inputs.batch.features
        age, num_events = found["age"].float(), found["num_events"]
        out = self.member(inputs.batch.subgraph, inputs.members, inputs.events, num_events, age)
        item = self.item(item_neighborhood(inputs.batch), inputs.items)
        member = out.embedding[found["row"].repeat(2)]
        logits = self.decoder(torch.cat([member, item, member * item], dim=1))
        return logits.view(2, -1), self._long_term(out.states, inputs.events, num_events)

    def _long_term(self, states: Tensor, events: Tensor, num_events: Tensor) -> Tensor:
        """The state at event N1 = num_events - N2 foretells the features of the N2 events after it."""
        shown = num_events - self.num_future
        rows = torch.arange(len(events))
        at = shown.clamp(min=1) - 1
        predicted = F.normalize(self.foretell(states[rows, self.member.num_tokens + at]), dim=1)
        places = at[:, None] + 1 + torch.arange(self.num_future)
        valid = (shown >= 1)[:, None] & (places < num_events[:, None])
        future = F.normalize(events[rows[:, None], places.clamp(max=events.shape[1] - 1)], dim=2)
        return long_term_loss(10 * predicted, future, valid)


def losses(logits: Tensor) -> Tensor:
    """Binary cross-entropy of pairs, with as many negatives as positives."""
    positive, negative = logits
    return (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2


def auc(positive: Tensor, negative: Tensor) -> float:
    """The share of (positive, negative) pairs in the right order; ties count half."""
    scores = torch.cat([negative, positive]).double()
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0) - (counts - 1) / 2  # the mean rank of equal scores, from 1
    above = rank[place[len(negative) :]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))
