"""Bad input of the pipelined engine: named before any communication."""

import json

import pytest
import torch
from torch import nn

from gossamer import distributed
from gossamer.graph import GraphLayer, GraphSequential, aggregate, gcn_aggregate

from pipeline_problem import NUM_CLASSES, NUM_FEATURES, NUM_NODES, make_engine, make_model, make_problem


def _with(**changes):
    graph, data = make_problem()
    return graph, data | changes


def _nan_features():
    features = make_problem()[1]["features"]
    features[7, 3] = float("nan")
    return features


BAD_DATA = [
    pytest.param({"features": _nan_features()}, ValueError, "features must be finite, .* at node 7", id="nan"),
    pytest.param({"features": torch.zeros(3, 2)}, ValueError, r"features must be \[150, num_features\]", id="rows"),
    pytest.param({"features": torch.zeros(NUM_NODES, 2).long()}, TypeError, "features must be floating", id="dtype"),
    pytest.param({"labels": torch.zeros(4).long()}, ValueError, "labels must have 150 rows", id="labels"),
    pytest.param({"labels": torch.full((NUM_NODES,), 9)}, ValueError, r"labels must be in \[0, 4\), got 9", id="class"),
    pytest.param(
        {"features": torch.zeros(NUM_NODES, 12).double()}, TypeError, "features must be of the model's", id="fp64"
    ),
    pytest.param({"masks": {}}, ValueError, "masks must hold 'train'", id="no train mask"),
    pytest.param({"masks": {"train": torch.zeros(NUM_NODES)}}, ValueError, "must be bool", id="mask dtype"),
    pytest.param(
        {"masks": {"train": torch.zeros(NUM_NODES, dtype=torch.bool)}}, ValueError, "at least one node", id="empty mask"
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_DATA)
def test_bad_data_is_named(changes, error, message):
    graph, data = _with(**changes)
    with pytest.raises(error, match=message):
        make_engine(make_model(), graph, data)


BAD_SECTIONS = [
    ({"num_ways": 0}, "num_ways must be an int of at least 1, got 0"),
    ({"num_ways": NUM_NODES + 1}, "num_ways must be at most the number of nodes"),
    ({"num_chunks": 0}, "num_chunks must be None or an int of at least 1, got 0"),
    ({"num_chunks": "4"}, "num_chunks must be None or an int of at least 1, got '4'"),
    ({"num_chunks": True}, "num_chunks must be None or an int of at least 1, got True"),
    ({"refresh_period": 2.5}, "refresh_period must be an int of at least 1, got 2.5"),
    ({"shuffle": "false"}, "shuffle must be true or false, got 'false'"),
    ({"recompute": 1}, "recompute must be true or false, got 1"),
    ({"seed": 2**32}, r"seed must be an int in \[0, 2\^32\), got 4294967296"),
    ({"seed": -1}, "seed must be an int in"),
    ({"stage_bounds": 3}, "stage_bounds must be None or layer numbers of at least 1, got 3"),
    ({"stage_bounds": ["a"]}, "stage_bounds must be None or layer numbers of at least 1"),
    ({"num_chunks": NUM_NODES + 1}, "num_chunks must be at most the number of nodes"),
    ({"refresh_period": 0}, "refresh_period must be an int of at least 1, got 0"),
    ({"cross_chunk_gradient": "some"}, "cross_chunk_gradient must be one of"),
    ({"history_dtype": "fp8"}, "history_dtype must be one of full, bfloat16, int8, got 'fp8'"),
    ({"history_start": 1}, "history_start must be one of zero, exact, got 1"),
    ({"refresh_distance": 0}, "refresh_distance must be None or a positive number, got 0"),
    ({"refresh_distance": True}, "refresh_distance must be None or a positive number, got True"),
    ({"refresh_distance": 0.1, "refresh_period": 1}, "refresh_distance must be None where refresh_period is 1 or"),
    ({"refresh_distance": 0.1, "num_ways": 2}, "refresh_distance must be None where refresh_period is 1 or num_ways"),
    ({"stage_bounds": [3]}, "stage_bounds must be 0 ascending layer numbers"),
    ({"chunks": 3}, "config must be made of .*, got \\['chunks'\\]"),
    ({"backend": "other"}, "backend must be one of"),
]


@pytest.mark.parametrize(("section", "message"), BAD_SECTIONS)
def test_bad_configuration_is_named(section, message):
    graph, data = make_problem()
    with pytest.raises(ValueError, match=message):
        make_engine(make_model(), graph, data, **section)


BAD_WHOLES = [
    ({"bf16": {"enabled": True}}, "bf16.enabled must be false"),
    ({"fp16": {"enabled": True}}, "fp16.enabled must be false"),
    ({"gossamer": [1]}, r"config\['gossamer'\] must be a JSON object"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler must be absent where torch's optimizer works without DeepSpeed"),
    ({"optimizer": {"type": "Adamant"}}, "optimizer.type must be the name of a torch optimizer, got 'Adamant'"),
    ({"optimizer": {"params": {"lr": 1.0}}}, "optimizer.type must be the name of a torch optimizer, got None"),
    ({"optimizer": {"type": "Adam", "params": {"lr": -1.0}}}, "optimizer.params must be those of Adam, got .*-1.0"),
    ({"optimizer": {"type": "Adam", "params": {"rate": 1.0}}}, "optimizer.params must be those of Adam, got .*rate"),
]


@pytest.mark.parametrize(("config", "message"), BAD_WHOLES)
def test_what_the_pipeline_does_not_serve_is_refused(config, message):
    graph, data = make_problem()
    with pytest.raises(ValueError, match=message):
        distributed.initialize(make_model(), graph, **data, config=config)


def test_disabled_sections_are_no_obstacle():
    distributed.load_config({"bf16": {"enabled": False}, "fp16": {}})


@pytest.mark.parametrize("content", ["[1, 2]", "3", "{"])
def test_a_file_that_is_no_object_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="config must be"):
        distributed.load_config(path)


def test_a_file_and_a_dictionary_mean_the_same(tmp_path):
    config = {"optimizer": {"type": "SGD"}, "gossamer": {"num_chunks": 3, "stage_bounds": [2]}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert distributed.load_config(path) == distributed.load_config(config)


def test_model_must_be_a_sequence_of_layers():
    graph, data = make_problem()
    with pytest.raises(TypeError, match="model must be a sequence of layers"):
        make_engine(nn.Linear(NUM_FEATURES, NUM_CLASSES), graph, data)


def test_a_stage_without_parameters_is_named():
    layers = [nn.ReLU(), nn.Linear(NUM_FEATURES, NUM_CLASSES)]
    with pytest.raises(ValueError, match="every stage must have parameters to train, got none in stage 0"):
        distributed.plan_stages(layers, torch.zeros(3, NUM_FEATURES), 2)


def test_more_stages_than_layers_and_fewer_chunks_than_stages():
    from gossamer.distributed.stages import split_layers

    with pytest.raises(ValueError, match="num_stages must be between 1 and the 2 layers, got 3"):
        split_layers([1, 1], 3)
    with pytest.raises(ValueError, match=r"num_chunks must be 1 or at least the number of stages \(4\), got 3"):
        distributed.PipelineConfig(num_chunks=3).chunks_for(4, 100)


class _Forgetful(GraphLayer):
    """A layer that aggregates another width for every chunk."""

    def forward(self, graph, x):
        width = 2 + graph.num_nodes % 2
        return gcn_aggregate(graph, x[:, :width]).sum(dim=1, keepdim=True).expand(-1, NUM_CLASSES)


def test_a_layer_that_changes_its_widths_is_named():
    graph, data = make_problem()
    engine = make_engine(GraphSequential(nn.Linear(NUM_FEATURES, 8), _Forgetful()), graph, data, num_chunks=7)
    with pytest.raises(ValueError, match="layers must aggregate the same widths"):
        engine.train_epoch()


@pytest.mark.parametrize("costs", [[1] * 33, [5, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0], [3.0, 0.1]])
@pytest.mark.parametrize("num_stages", [1, 2])
def test_split_is_contiguous_and_minimises_the_maximum(costs, num_stages):
    from gossamer.distributed.stages import split_layers

    ranges = split_layers(costs, num_stages)
    assert [i for one in ranges for i in one] == list(range(len(costs)))
    assert all(ranges)
    cuts = range(1, len(costs)) if num_stages == 2 else [len(costs)]
    best = min(max(sum(costs[:cut]), sum(costs[cut:])) for cut in cuts)
    assert max(sum(costs[i] for i in one) for one in ranges) == pytest.approx(best)


class _Normalised(GraphLayer):
    """Asks a plain aggregation for the normalisation of GCN, which has a function of its own."""

    def forward(self, graph, x):
        return aggregate(graph, x, reduce="gcn")


def test_an_unknown_reduction_is_refused_in_a_chunk_as_on_the_graph():
    graph, data = make_problem()
    model = GraphSequential(_Normalised(), nn.Linear(NUM_FEATURES, NUM_CLASSES))
    with pytest.raises(ValueError, match="reduce must be sum, mean, max or min, got 'gcn'"):
        model(graph, data["features"])
    with pytest.raises(ValueError, match="reduce must be sum, mean, max or min, got 'gcn'"):
        make_engine(model, graph, data, num_chunks=3).train_epoch()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    graph, data = make_problem()
    torch.manual_seed(0)
    wide, narrow = (GraphSequential(nn.Linear(NUM_FEATURES, width), nn.Linear(width, NUM_CLASSES)) for width in (8, 9))
    make_engine(wide, graph, data, num_chunks=2).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="load_checkpoint: model must be the one that was saved"):
        make_engine(narrow, graph, data, num_chunks=2).load_checkpoint(tmp_path)
