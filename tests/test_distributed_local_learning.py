"""Layers with losses of their own in a pipeline: the weights of one process, and the bubble of filling alone."""

import os

import pytest
import torch
import torch.distributed as dist
from workers import run_workers

from gossamer.distributed import LocalPipeline
from gossamer.distributed.schedule import Costs, Kind, check_schedule, local, simulate
from gossamer.graph import SingleForward, forward_gnn, train_together

from pipeline_problem import NUM_CLASSES, NUM_NODES, make_problem

NUM_LAYERS, NUM_EPOCHS, WIDTH = 5, 7, 8


def make():
    graph, data = make_problem()
    objective = SingleForward(graph, data["features"], data["labels"], data["masks"]["train"], NUM_CLASSES)
    torch.manual_seed(1)
    return forward_gnn(objective.in_channels, WIDTH, NUM_LAYERS), objective


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("num_micro_batches", [1, 3, 8])
def test_schedule(num_stages, num_micro_batches):
    made = local(num_stages, num_micro_batches)
    check_schedule(made)
    assert all(a.kind is not Kind.SEND_GRADIENT for actions in made.stages for a in actions)
    bubble = simulate(made, Costs()).bubble
    assert bubble == pytest.approx((num_stages - 1) / (3 * num_micro_batches + num_stages - 1))


def _worker(rank, world, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    layers, objective = make()
    pipeline = LocalPipeline(layers, objective)
    losses = pipeline.train(NUM_EPOCHS - 2) + pipeline.train(2)
    weights = {i: layers[i].state_dict() for i in pipeline.layer_ids}
    torch.save((losses, weights, pipeline.counters.as_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.launch
@pytest.mark.parametrize("world", [2, 3])
def test_equal_to_one_process(tmp_path, world):
    layers, objective = make()
    history = train_together(layers, objective, NUM_EPOCHS)
    run_workers(_worker, (world, str(tmp_path)), num_workers=world)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    assert [[loss for f in found for loss in f[0][epoch]] for epoch in range(NUM_EPOCHS)] == history
    weights = {i: state for _, states, _ in found for i, state in states.items()}
    assert sorted(weights) == list(range(NUM_LAYERS))
    for i, layer in enumerate(layers):
        assert all(torch.equal(weights[i][name], value) for name, value in layer.state_dict().items())
    one_way = NUM_EPOCHS * (NUM_NODES + NUM_CLASSES) * WIDTH * 4
    assert [f[2]["layer_level"] for f in found] == [one_way] * (world - 1) + [0]


def test_one_process_is_a_pipeline_of_one_stage():
    (layers, objective), (others, _) = make(), make()
    assert LocalPipeline(layers, objective).train(3) == train_together(others, objective, 3)
