"""NeighborSampler in PyG's loaders: homogeneous, heterogeneous, temporal, stores, and the same for any workers."""

import pickle

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import NegativeSampling, NodeSamplerInput
from torch_geometric.sampler.base import SubgraphType
from torch_geometric.testing import MyFeatureStore, MyGraphStore

from gossamer.graph import NeighborSampler


def homogeneous(num_nodes: int = 100, num_edges: int = 1500) -> Data:
    g = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=g)
    return Data(
        x=torch.arange(num_nodes).float().view(-1, 1),
        edge_index=edge_index,
        edge_attr=edge_index.t().float(),
        weight=torch.rand(num_edges, generator=g),
        edge_time=torch.randint(50, (num_edges,), generator=g),
        time=torch.randint(50, (num_nodes,), generator=g),
    )


def heterogeneous() -> HeteroData:
    g = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["user"].x = torch.arange(40).float().view(-1, 1)
    data["item"].x = torch.arange(60).float().view(-1, 1)
    for edge_type, shape in {("user", "rates", "item"): (40, 60), ("item", "rev_rates", "user"): (60, 40),
                             ("user", "knows", "user"): (40, 40)}.items():  # fmt: skip
        ends = [torch.randint(n, (400,), generator=g) for n in shape]
        data[edge_type].edge_index = torch.stack(ends)
        data[edge_type].edge_attr = torch.stack(ends, 1).float()
        data[edge_type].weight = torch.rand(400, generator=g)
        data[edge_type].edge_time = torch.randint(50, (400,), generator=g)
    return data


def check_batch(batch: Data) -> None:
    """Features and edge attributes of a homogeneous batch are those of its nodes and edges."""
    assert torch.equal(batch.x.flatten().long(), batch.n_id)
    assert torch.equal(batch.n_id[batch.edge_index].t().float(), batch.edge_attr)


OPTIONS = [
    pytest.param({}, id="uniform"),
    pytest.param({"replace": True}, id="replace"),
    pytest.param({"weight_attr": "weight"}, id="weighted"),
    pytest.param({"disjoint": True}, id="disjoint"),
    pytest.param({"subgraph_type": SubgraphType.bidirectional}, id="bidirectional"),
    pytest.param({"subgraph_type": "induced"}, id="induced"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_node_loader(options):
    data = homogeneous()
    sampler = NeighborSampler(data, [4, 3], **options)
    seen = []
    for batch in NodeLoader(data, sampler, torch.arange(100), batch_size=20):
        if options.get("subgraph_type") == SubgraphType.bidirectional:
            assert torch.equal(batch.x.flatten().long(), batch.n_id)
            assert {(a, b) for a, b in batch.edge_index.t().tolist()} >= {
                (b, a) for a, b in batch.edge_index.t().tolist()
            }
        else:
            check_batch(batch)
        assert torch.equal(batch.n_id[: batch.batch_size], batch.input_id)
        seen.append(batch.input_id)
    assert torch.equal(torch.cat(seen), torch.arange(100))


def test_induced_holds_every_edge_between_its_nodes():
    data = homogeneous()
    batch = next(iter(NodeLoader(data, NeighborSampler(data, [3], "induced"), torch.arange(5), batch_size=5)))
    inside = torch.isin(data.edge_index, batch.n_id).all(0)
    assert torch.equal(batch.e_id.sort().values, inside.nonzero().flatten())


@pytest.mark.parametrize("attr", ["time", "edge_time"])
@pytest.mark.parametrize("options", [{}, {"weight_attr": "weight"}, {"subgraph_type": "induced"},
                                     {"temporal_strategy": "last"}, {"window": 10}])  # fmt: skip
def test_no_edge_of_a_loader_is_from_the_future(attr, options):
    data = homogeneous()
    sampler = NeighborSampler(data, [4, 3], time_attr=attr, **options)
    input_time = torch.arange(100) % 50
    num_edges = 0
    for batch in NodeLoader(data, sampler, torch.arange(100), batch_size=20, input_time=input_time):
        time = data.edge_time[batch.e_id] if attr == "edge_time" else data.time[batch.n_id[batch.edge_index[0]]]
        limit = batch.seed_time[batch.batch[batch.edge_index[1]]]
        assert bool((time <= limit).all())
        assert bool((time >= limit - options.get("window", 50)).all())
        num_edges += len(time)
    assert num_edges > 300


def test_times_of_nodes_and_of_edges_hold_jointly():
    data = HeteroData()
    ends = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.int64)])
    data["user"].num_nodes, data["item"].num_nodes = 6, 1
    data["user"].time, data["user", "buys", "item"].time = torch.tensor([1, 9, 1, 9, 2, 2]), torch.arange(6)
    data["user", "buys", "item"].edge_index = ends
    seeds = ("item", torch.tensor([0]))
    sampler = NeighborSampler(data, [-1], time_attr="time")
    batch = next(iter(NodeLoader(data, sampler, seeds, input_time=torch.tensor([4]))))
    assert batch["user", "buys", "item"].e_id.sort().values.tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="input_time must be given for seeds without times, got None for 'item'"):
        next(iter(NodeLoader(data, NeighborSampler(data, [-1], time_attr="time"), seeds)))


@pytest.mark.parametrize("options", [{}, {"subgraph_type": "induced"}, {"weight_attr": "weight"}])
def test_edge_types_without_times_have_no_window(options):
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = 2, 1
    data["user", "buys", "item"].edge_index = torch.tensor([[0, 1], [0, 0]])
    data["user", "buys", "item"].update({"when": torch.tensor([1, 9]), "weight": torch.ones(2)})
    data["item", "by", "user"].edge_index = torch.tensor([[0], [1]])
    sampler = NeighborSampler(data, [2, 2], time_attr="when", window=3, **options)
    batch = next(iter(NodeLoader(data, sampler, ("item", torch.tensor([0])), input_time=torch.tensor([10]))))
    assert batch["user", "buys", "item"].e_id.tolist()[:1] == [1]
    assert batch["item", "by", "user"].e_id.tolist() == [0]


def test_int32_edges():
    data = homogeneous()
    narrow = Data(edge_index=data.edge_index.int(), num_nodes=100)
    inputs = NodeSamplerInput(input_id=torch.arange(5), node=torch.arange(5))
    ours, theirs = (NeighborSampler(d, [4, 3]).sample_from_nodes(inputs) for d in (narrow, data))
    assert torch.equal(ours.edge, theirs.edge)


def test_induced_with_times_works():
    """pytorch_geometric#10566: an error for every induced subgraph with a time attribute."""
    ends = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
    data = Data(x=torch.rand(5, 3), edge_index=ends, edge_time=torch.arange(1, 9))
    sampler = NeighborSampler(data, [2, 1], "induced", time_attr="edge_time")
    times = torch.tensor([3, 7])
    batch = next(iter(NodeLoader(data, sampler, torch.tensor([0, 4]), batch_size=2, input_time=times)))
    edges = sorted(zip(batch.batch[batch.edge_index[1]].tolist(), batch.e_id.tolist()))
    assert edges == [(0, 0), (0, 1), (1, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize("neg_sampling", [None, NegativeSampling("binary"), NegativeSampling("triplet", 2)])
@pytest.mark.parametrize("time_attr", [None, "edge_time"])
def test_link_loader(neg_sampling, time_attr):
    data = homogeneous()
    time = None if time_attr is None else torch.arange(60) % 50
    loader = LinkLoader(
        data, NeighborSampler(data, [4, 3], time_attr=time_attr), data.edge_index[:, :60], edge_label_time=time,
        neg_sampling=neg_sampling, batch_size=20,
    )  # fmt: skip
    for i, batch in enumerate(loader):
        check_batch(batch)
        positive = data.edge_index[:, 20 * i : 20 * i + 20]
        if neg_sampling is not None and neg_sampling.is_triplet():
            found = torch.stack([batch.n_id[batch.src_index], batch.n_id[batch.dst_pos_index]])
            assert batch.dst_neg_index.shape == (20, 2)
        else:
            found = batch.n_id[batch.edge_label_index][:, :20]
            assert batch.edge_label_index.shape[1] == (20 if neg_sampling is None else 40)
        assert torch.equal(found, positive)


TEMPORAL = pytest.param({"time_attr": "edge_time", "weight_attr": "weight"}, id="temporal, weighted")


@pytest.mark.parametrize("options", [*OPTIONS[:4], OPTIONS[5], TEMPORAL])
def test_heterogeneous_node_loader(options):
    data = heterogeneous()
    fanouts = {edge_type: [3, 2] for edge_type in data.edge_types} | {("user", "knows", "user"): [0, 2]}
    sampler = NeighborSampler(data, fanouts, **options)
    time = torch.arange(60) % 50 if "time_attr" in options else None
    for batch in NodeLoader(data, sampler, ("item", torch.arange(60)), batch_size=20, input_time=time):
        for node_type in batch.node_types:
            assert torch.equal(batch[node_type].x.flatten().long(), batch[node_type].n_id)
        for edge_type in batch.edge_types:
            source, target = (batch[t].n_id[e] for t, e in zip(edge_type[::2], batch[edge_type].edge_index))
            assert torch.equal(torch.stack([source, target], 1).float(), batch[edge_type].edge_attr)
            if time is not None:
                limit = batch["item"].seed_time[batch[edge_type[2]].batch[batch[edge_type].edge_index[1]]]
                assert bool((data[edge_type].edge_time[batch[edge_type].e_id] <= limit).all())
        if options.get("subgraph_type") != "induced":
            assert batch["user", "knows", "user"].num_sampled_edges[0] == 0
            assert sum(batch["user"].num_sampled_nodes) == batch["user"].n_id.numel()


def test_heterogeneous_link_loader():
    data = heterogeneous()
    edge_type = ("user", "rates", "item")
    loader = LinkLoader(
        data, NeighborSampler(data, [3, 2]), (edge_type, data[edge_type].edge_index[:, :40]), batch_size=20,
        neg_sampling=NegativeSampling("binary"),
    )  # fmt: skip
    for i, batch in enumerate(loader):
        label = batch[edge_type].edge_label_index[:, :20]
        ends = torch.stack([batch["user"].n_id[label[0]], batch["item"].n_id[label[1]]])
        assert torch.equal(ends, data[edge_type].edge_index[:, 20 * i : 20 * i + 20])


def test_feature_store_and_graph_store():
    data = homogeneous()
    features, graph = MyFeatureStore(), MyGraphStore()
    features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
    graph.put_edge_index(data.edge_index, edge_type=None, layout="coo", size=(100, 100))
    stores = (features, graph)
    batches = zip(
        NodeLoader(stores, NeighborSampler(stores, [4, 3]), torch.arange(40), batch_size=20),
        NodeLoader(data, NeighborSampler(data, [4, 3]), torch.arange(40), batch_size=20),
    )
    for a, b in batches:
        assert torch.equal(a.n_id, b.n_id)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.e_id, b.e_id)


def test_weights_and_times_in_stores():
    """Nodes and edges of a homogeneous graph share a name: times of edges are told by their number."""
    features, graph = MyFeatureStore(), MyGraphStore()
    graph.put_edge_index(torch.tensor([[1, 2], [0, 0]]), edge_type=None, layout="coo", size=(3, 3))
    features.put_tensor(torch.tensor([5, 1]), group_name=None, attr_name="edge_time", index=None)
    features.put_tensor(torch.tensor([9, 1, 5]), group_name=None, attr_name="time", index=None)
    inputs = NodeSamplerInput(input_id=None, node=torch.tensor([0]), time=torch.tensor([3]))
    for name, expected in (("edge_time", [1]), ("time", [0])):
        sampler = NeighborSampler((features, graph), [-1], time_attr=name)
        assert sampler.sample_from_nodes(inputs).edge.tolist() == expected


def test_edge_types_without_weights_count_as_ones():
    data = heterogeneous()
    del data["user", "knows", "user"].weight
    features, graph = MyFeatureStore(), MyGraphStore()
    for edge_type in data.edge_types:
        size = (data[edge_type[0]].num_nodes, data[edge_type[2]].num_nodes)
        graph.put_edge_index(data[edge_type].edge_index, edge_type=edge_type, layout="coo", size=size)
        if "weight" in data[edge_type]:
            features.put_tensor(data[edge_type].weight, group_name=edge_type, attr_name="weight", index=None)
    inputs = NodeSamplerInput(input_id=None, node=torch.arange(9), input_type="item")
    for source in (data, (features, graph)):
        out = NeighborSampler(source, [3, 2], weight_attr="weight").sample_from_nodes(inputs)
        assert out.edge["user", "knows", "user"].numel() > 9
        with pytest.raises(ValueError, match="NeighborSampler: weight_attr must name an edge attribute, got 'mass'"):
            NeighborSampler(source, [3, 2], weight_attr="mass")


def test_same_batches_for_any_number_of_workers():
    data = homogeneous()
    sampler = NeighborSampler(data, [4, 3], weight_attr="weight", seed=3)

    def edges(num_workers: int) -> list[torch.Tensor]:
        loader = NodeLoader(data, sampler, torch.arange(60), batch_size=20, num_workers=num_workers)
        return [batch.e_id.clone() for batch in loader]

    expected = edges(0)
    for num_workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(edges(num_workers), expected))
    sampler.set_epoch(1)
    assert not torch.equal(edges(0)[0], expected[0])


def test_a_pickled_sampler_draws_the_same():
    sampler = NeighborSampler(homogeneous(), [4, 3])
    inputs = NodeSamplerInput(input_id=torch.arange(5), node=torch.arange(5))
    out = sampler.sample_from_nodes(inputs)
    again = pickle.loads(pickle.dumps(sampler)).sample_from_nodes(inputs)
    assert torch.equal(out.edge, again.edge)


def test_fanouts_change_between_batches():
    sampler = NeighborSampler(homogeneous(), [4, 3])
    inputs = NodeSamplerInput(input_id=torch.arange(5), node=torch.arange(5))
    sampler.num_neighbors = [1]
    assert sampler.sample_from_nodes(inputs).edge.numel() == 5


def test_wrong_arguments():
    data = homogeneous()
    with pytest.raises(ValueError, match="NeighborSampler: temporal_strategy must be one of"):
        NeighborSampler(data, [1], temporal_strategy="newest")
    with pytest.raises(ValueError, match="NeighborSampler: time_attr must name node or edge times, got 'when'"):
        NeighborSampler(data, [1], time_attr="when")
    with pytest.raises(ValueError, match="NeighborSampler: weight_attr must name an edge attribute, got 'mass'"):
        NeighborSampler(data, [1], weight_attr="mass")
    with pytest.raises(ValueError, match="NeighborSampler: fanouts must be"):
        NeighborSampler(data, [-3])
    with pytest.raises(TypeError, match="NeighborSampler: data must be Data, HeteroData or"):
        NeighborSampler(data.edge_index, [1])
    with pytest.raises(ValueError, match="NeighborSampler: input_time must be given for edge times, got None"):
        next(iter(NodeLoader(data, NeighborSampler(data, [1], time_attr="edge_time"), torch.arange(4))))
    for seeds in (torch.tensor([100]), torch.tensor([-1])):  # were read behind the tables
        with pytest.raises(ValueError, match=r"NeighborSampler: seeds must be in \[0, 100\), got"):
            next(iter(NodeLoader(data, NeighborSampler(data, [1]), seeds)))
    loader = NodeLoader(data, NeighborSampler(data, [1], time_attr="time"), torch.tensor([4]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="NeighborSampler: input_time must be one integer per seed, got"):
        next(iter(loader))


WRONG = [
    pytest.param({"edge_index": torch.tensor([[0, 1], [1, 2]])}, {}, "edge_index must hold node ids in",
                 id="target"),
    pytest.param({"edge_index": torch.tensor([[0, 5], [1, 1]])}, {}, "edge_index must hold node ids in",
                 id="source"),
    pytest.param({"edge_time": torch.rand(2)}, {"time_attr": "edge_time"},
                 r"time_attr must name an integer per .*, \[2\], got \[2\] of torch.float32", id="fractions of times"),
    pytest.param({"edge_time": torch.arange(3)}, {"time_attr": "edge_time"}, "time_attr must name an integer per",
                 id="too many times"),
    pytest.param({"w": torch.rand(2, 2)}, {"weight_attr": "w"}, r"weight_attr must name a number per edge, \[2\]",
                 id="weights"),
    pytest.param({}, {"window": -1}, r"window must be in \[0, 2\^63\), got -1", id="window"),
    pytest.param({}, {"subgraph_type": "all"}, "subgraph_type must be one of .*, got 'all'", id="subgraph type"),
    pytest.param({}, {"replace": True, "temporal_strategy": "last"}, "replace must be False", id="last, replaced"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "options", "message"), WRONG)
def test_wrong_data(content, options, message):
    """PyG writes behind its memory where a target is no node."""
    data = Data(**{"edge_index": torch.tensor([[0, 1], [1, 0]]), "num_nodes": 2, **content})
    with pytest.raises(ValueError, match=f"NeighborSampler: {message}"):
        NeighborSampler(data, [1], **options)
