"""A small problem for the pipelined engine, and models of every kind to train on it."""

import copy

import torch
from torch import nn

from gossamer import distributed
from gossamer.graph import CSR, GCN, GCNII, GraphLayer, GraphSAGE, GraphSequential, NodeDropout, ResGCN, aggregate

NUM_NODES, NUM_FEATURES, NUM_CLASSES = 150, 12, 4


class Neighbors(GraphLayer):
    """A user's own message-passing layer."""

    def __init__(self, width, reduce):
        super().__init__()
        self.linear, self.reduce = nn.Linear(width, width), reduce

    def forward(self, graph, x):
        return x + torch.tanh(self.linear(aggregate(graph, x, reduce=self.reduce)))


def _extremes(num_features, hidden, num_classes, num_layers, dropout):
    middle = [Neighbors(hidden, ("max", "min", "sum", "mean")[i % 4]) for i in range(num_layers)]
    return GraphSequential(
        nn.Linear(num_features, hidden), *middle, NodeDropout(dropout), nn.Linear(hidden, num_classes)
    )


MODELS = {"gcnii": GCNII, "gcn": GCN, "sage": GraphSAGE, "resgcn": ResGCN, "own layers": _extremes}


def make_problem(dtype=torch.float32, seed=0, *, weighted=False):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, NUM_NODES, (2, 500), generator=generator)
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    weight = torch.rand(edges.shape[1], generator=generator, dtype=dtype) if weighted else None
    graph = CSR.from_edge_index(edges, NUM_NODES, weight=weight)
    features = torch.randn(NUM_NODES, NUM_FEATURES, generator=generator, dtype=dtype)
    labels = torch.randint(0, NUM_CLASSES, (NUM_NODES,), generator=generator)
    train = torch.rand(NUM_NODES, generator=generator) < 0.5
    return graph, {"features": features, "labels": labels, "masks": {"train": train, "test": ~train}}


def make_model(name="gcnii", num_layers=6, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(1)
    return MODELS[name](NUM_FEATURES, 8, NUM_CLASSES, num_layers, dropout=dropout).to(dtype)


def make_engine(model, graph, data, *, lr=1e-2, optimizer="Adam", **section):
    config = {"optimizer": {"type": optimizer, "params": {"lr": lr}}, "gossamer": section}
    return distributed.initialize(copy.deepcopy(model), graph, **data, config=config)


def gradients_of_next_epoch(engine, *, summed_over_ways=False):
    """Run one epoch whose update is replaced by a look at the gradients, by parameter name."""
    found = {}
    step = engine._worker.backend.step

    def look():
        if summed_over_ways and engine.num_ways > 1:
            engine._worker.backend._sum_over_ways()
        found.update({name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None})
        engine.module.zero_grad()

    engine._worker.backend.step = look
    report = engine.train_epoch()
    engine._worker.backend.step = step
    return report, found
