"""The tasks of the long-range example: made, read from local files of every kind, or said to be missing."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

from graph_sets import GraphSet, stratified_splits
from long_range_configs import CONFIGS
from long_range_data import ATOM_CATEGORIES, load_task
from long_range_models import build_model, solve_width

TRIANGLE_AND_PATH = """2
3 1
0 2 1 2
0 2 0 2
7 2 0 1
2 -1
7 1 1
7 1 0
"""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No data set of this machine is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)


def test_ring_transfer_is_the_task_of_the_paper():
    task = load_task("ring-transfer", size=6)
    assert {name: task.graphs.y[ids].bincount().tolist() for name, ids in task.graphs.splits.items()} == {
        "train": [320] * 5, "val": [40] * 5, "test": [40] * 5,
    }  # fmt: skip
    batch = task.graphs.batch(torch.tensor([1999, 0]))
    x = batch.x.view(2, 6, 5)
    assert batch.y.tolist() == [4, 0]
    assert x[:, 0].tolist() == [[0] * 5] * 2
    assert x[:, 3].tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert (x[:, [1, 2, 4, 5]] == 1).all()
    graph = batch.graph
    assert [sorted(graph.col[graph.rowptr[i] : graph.rowptr[i + 1]].tolist()) for i in (0, 5, 6, 11)] == [
        [1, 5], [0, 4], [7, 11], [6, 10],
    ]  # fmt: skip


def random_graphs(count, *, x, y, seed=0):
    """PyG data of random sizes; x(num_nodes) and y(num_nodes) make its tensors."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 9, (count,), generator=generator).tolist()
    edges = [torch.randint(0, n, (2, 3 * n), generator=generator) for n in sizes]
    return [Data(x=x(n), edge_index=e, y=y(n), edge_attr=torch.zeros(3 * n, 3)) for n, e in zip(sizes, edges)]


def test_a_batch_is_that_of_pyg():
    from torch_geometric.data import Batch

    graphs = random_graphs(12, x=lambda n: torch.randn(n, 4), y=lambda n: torch.arange(n))
    whole = GraphSet.from_pyg({"train": graphs[:8], "val": graphs[8:9], "test": graphs[9:]}, node_level=True)
    assert [ids.tolist() for ids in whole.splits.values()] == [list(range(8)), [8], [9, 10, 11]]
    ids = [7, 2, 11]
    found, expected = whole.batch(torch.tensor(ids)), Batch.from_data_list([graphs[i] for i in ids])
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)
    assert torch.equal(found.y, whole.targets(torch.tensor(ids)))
    assert found.sizes.tolist() == expected.ptr.diff().tolist()
    adjacency = [torch.zeros(expected.num_nodes, expected.num_nodes) for _ in range(2)]
    for matrix, (source, target) in zip(adjacency, (found.graph.to_edge_index(), expected.edge_index)):
        matrix.index_put_((target, source), torch.ones(()), accumulate=True)
    assert torch.equal(*adjacency)


def test_positional_encoding_is_that_of_every_graph_alone():
    from gossamer.graph import laplacian_pe

    graphs = GraphSet.from_pyg({"all": random_graphs(5, x=lambda n: torch.zeros(n, 1), y=lambda n: torch.zeros(1))})
    batch = graphs.with_laplacian(3).batch(torch.tensor([4, 1]))
    parts = [laplacian_pe(graphs.batch(torch.tensor([g])).graph, 3) for g in (4, 1)]
    assert torch.equal(batch.positional, torch.cat(parts))


def test_splits_are_stratified_and_disjoint():
    labels = torch.tensor([0] * 50 + [1] * 30)
    splits = stratified_splits(labels, seed=1)
    assert torch.cat(list(splits.values())).sort().values.tolist() == list(range(80))
    assert [labels[ids].bincount().tolist() for ids in splits.values()] == [[40, 24], [5, 3], [5, 3]]
    assert not torch.equal(splits["test"], stratified_splits(labels, seed=2)["test"])


def test_tu_text(tmp_path):
    (tmp_path / "MUTAG.txt").write_text(TRIANGLE_AND_PATH)
    graphs = load_task("mutag", root=str(tmp_path)).graphs
    assert graphs.x.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]
    assert graphs.y.tolist() == [1, 0]
    second = graphs.batch(torch.tensor([1]))
    assert second.graph.to_edge_index().tolist() in ([[1, 0], [0, 1]], [[0, 1], [1, 0]])
    assert graphs.batch(torch.tensor([0])).graph.in_degree().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "index out of range", id="empty"),
        pytest.param(TRIANGLE_AND_PATH[:20], "neighbours|nodes instead of", id="truncated"),
        pytest.param(TRIANGLE_AND_PATH.replace("0 2 1 2", "0 2 1 3"), "neighbours", id="neighbour out of range"),
        pytest.param("two graphs", "two", id="words"),
    ],
)
def test_a_damaged_tu_text_is_named(text, message, tmp_path):
    (tmp_path / "MUTAG.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"load_task: .*MUTAG.txt must be a text file of graphs, got .*({message})"):
        load_task("mutag", root=str(tmp_path))


def test_tu_files_of_pyg(tmp_path):
    raw = tmp_path / "MUTAG" / "raw"
    raw.mkdir(parents=True)
    (raw / "MUTAG_A.txt").write_text("1, 2\n2, 1\n1, 3\n3, 1\n2, 3\n3, 2\n4, 5\n5, 4\n")
    (raw / "MUTAG_graph_indicator.txt").write_text("1\n1\n1\n2\n2\n")
    (raw / "MUTAG_graph_labels.txt").write_text("1\n-1\n")
    (raw / "MUTAG_node_labels.txt").write_text("0\n0\n1\n1\n1\n")
    found = load_task("mutag", root=str(tmp_path)).graphs
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "MUTAG.txt").write_text(TRIANGLE_AND_PATH)
    expected = load_task("mutag", root=str(tmp_path / "text")).graphs
    for name in ("x", "y", "node_ptr", "edge_ptr"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def atoms(n):
    return torch.stack([torch.randint(0, c, (n,)) for c in ATOM_CATEGORIES], 1)


def write_peptides(root, dataset, columns):
    """The raw files that PyG's LRGBDataset reads."""
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        graphs = random_graphs(6, x=atoms, y=lambda n: torch.randint(0, 2, (1, columns)).float(), seed=seed)
        torch.save([(g.x, g.edge_attr, g.edge_index, g.y) for g in graphs], raw / f"{split}.pt")


def write_superpixels(root):
    raw = root / "pascalvoc-sp" / "raw"
    raw.mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        graphs = random_graphs(6, x=lambda n: torch.randn(n, 14), y=lambda n: torch.arange(n), seed=seed)
        content = [(g.x, g.edge_attr[:, :2], g.edge_index, g.y.tolist()) for g in graphs]
        (raw / f"{split}.pickle").write_bytes(pickle.dumps(content))


def write_qm9(root):
    raw = root / "qm9" / "raw"
    raw.mkdir(parents=True)
    graphs = random_graphs(20, x=lambda n: torch.randn(n, 11), y=lambda n: torch.randn(1, 19))
    torch.save([graph.to_dict() for graph in graphs], raw / "qm9_v3.pt")


def write_contacts(root):
    raw = root / "pcqm-contact" / "raw"
    raw.mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        graphs = random_graphs(
            6, x=atoms, y=lambda n: torch.stack([torch.tensor([0, 1]), torch.tensor([1, 0])]), seed=seed
        )
        labels = torch.tensor([1, 0], dtype=torch.int32)
        torch.save([(g.x, g.edge_attr, g.edge_index, g.y, labels) for g in graphs], raw / f"{split}.pt")


def write_all(root):
    write_contacts(root)
    write_peptides(root, "peptides-func", 10)
    write_peptides(root, "peptides-struct", 11)
    write_superpixels(root)
    write_qm9(root)
    text = TRIANGLE_AND_PATH.replace("2\n", "", 1) * 20
    for name in ("MUTAG", "ENZYMES", "NCI1", "PROTEINS"):
        (root / f"{name}.txt").write_text("40\n" + text)


@pytest.fixture(scope="module")
def local_files(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("data")
    write_all(root)
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_every_experiment_trains_a_step(name, local_files):
    """Model, loss, gradients and the metric."""
    config = replace(CONFIGS[name], layers=2, width=20)
    task = load_task(config.dataset, root=str(local_files))
    if config.positional:
        task = replace(task, graphs=task.graphs.with_laplacian(config.positional))
    model = build_model(config, task)
    batch = task.graphs.batch(task.graphs.splits["train"][:6])
    out = model(batch)
    (task.objective.loss(out, batch.y) / task.objective.weight(batch.y)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for part in (model.stack.encoder, model.stack.head) for p in part.parameters())
    with torch.no_grad():
        score = task.objective.score(model.eval()(batch), batch.y)
    assert score >= 0


def molecules(*contacts, sizes):
    """Graphs that label their pairs of nodes: contacts[g] with 1, all the others with 0."""
    from torch_geometric.data import Data

    graphs = []
    for pairs, size in zip(contacts, sizes):
        labels = torch.zeros(size, size)
        labels[tuple(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T)] = 1
        every = torch.cartesian_prod(*[torch.arange(size)] * 2).T
        edges = torch.zeros(2, 0, dtype=torch.int64)
        graphs.append(
            Data(x=torch.ones(size, 1), edge_index=edges, edge_label_index=every, edge_label=labels.flatten().int())
        )
    return graphs


def test_contacts_stand_beside_pairs_that_are_none():
    graphs = molecules([(0, 3), (3, 0), (1, 5)], [], [(2, 0), (0, 0), (0, 1), (0, 2)], sizes=[8, 2, 3])
    contacts = GraphSet.from_pyg({"train": graphs}).y
    drawn = [{tuple(pair) for pair in contacts.redrawn(seed).ends.T.tolist()} for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    for seed in range(20):
        pairs = contacts.redrawn(seed)[torch.tensor([2, 1, 0])]
        assert pairs.sizes.tolist() == [3, 2, 8]
        ends = [tuple(pair) for pair in pairs.ends.T.tolist()]
        assert len(set(ends)) == len(ends)
        found = {pair for pair, label in zip(ends, pairs.labels) if label == 1}
        assert found == {(2, 0), (0, 0), (0, 1), (0, 2), (5, 8), (8, 5), (6, 10)}
        heads = [pair[0] for pair in ends if pair not in found]
        assert [heads.count(node) for node in (5, 6, 8)] == [2, 2, 2]  # two beside every contact
        assert heads.count(2) in (1, 2)  # the other two nodes of the third graph, as far as they are found
        assert heads.count(0) == 0  # all of its pairs are contacts
        assert torch.equal(pairs.ends, contacts.redrawn(seed)[torch.tensor([2, 1, 0])].ends)


def test_a_contact_between_nodes_that_are_not_there():
    [graph] = molecules([(0, 1)], sizes=[3])
    graph.num_nodes = 2
    graph.edge_label_index[:, 1] = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"edge_label_index of graph 0 must be node ids in \[0, 2\), got 0 to 2"):
        GraphSet.from_pyg({"train": [graph]})


def test_the_reciprocal_rank_is_that_of_the_benchmark():
    """Against a loop over the contacts of every graph."""
    from objectives import ContactPrediction

    torch.manual_seed(0)
    contacts = [(0, 3), (3, 0), (1, 5), (0, 6)], [], [(2, 0), (0, 1)]
    pairs = GraphSet.from_pyg({"train": molecules(*contacts, sizes=[8, 2, 3])}).y[torch.arange(3)]
    rows = torch.randn(13, 4)
    means = []
    for own, nodes in zip(contacts, rows.split([8, 2, 3])):
        ranks = [
            1 + sum(float(nodes[k] @ nodes[i]) > float(nodes[j] @ nodes[i]) for k in range(len(nodes))) for i, j in own
        ]
        means.append(sum(1 / rank for rank in ranks) / max(len(ranks), 1))
    assert ContactPrediction().score(rows, pairs) == pytest.approx(sum(means) / 3)
    # all alike: a contact of the first graph has place 4.5 of 8, one of the third graph place 2 of 3
    assert ContactPrediction().score(torch.ones(13, 4), pairs) == pytest.approx((1 / 4.5 + 0 + 1 / 2) / 3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.stack([rows[i] @ rows[j] for i, j in pairs.ends.T]), pairs.labels
    )
    torch.testing.assert_close(ContactPrediction().loss(rows, pairs) / ContactPrediction().weight(pairs), expected)


def test_targets_of_qm9_are_scaled_by_the_training_molecules(local_files):
    task = load_task("qm9", root=str(local_files), target=3)
    train = task.graphs.y[task.graphs.splits["train"]]
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)
    assert not torch.equal(task.graphs.y, load_task("qm9", root=str(local_files), target=4).graphs.y)


PUBLISHED = {
    "drew_gcn_peptides_func": 130,
    "drew_gcn_peptides_func_deep": 42,
    "drew_gcn_peptides_struct": 175,
    "drew_gatedgcn_peptides_struct": 152,
    "drew_gatedgcn_pascalvoc_sp": 120,
    "drew_gcn_pcqm_contact": 48,
    "drew_gcn_pcqm_contact_laplacian": 92,
    "drew_gatedgcn_pcqm_contact": 107,
    "gcn_pcqm_contact": 275,
}


@pytest.mark.parametrize(("name", "width"), PUBLISHED.items())
def test_the_rule_gives_the_published_widths(name, width, local_files):
    config = CONFIGS[name]
    task = load_task(config.dataset, root=str(local_files))
    assert solve_width(config, task) == pytest.approx(width, abs=4)
    parameters = sum(p.numel() for p in build_model(config, task).parameters())
    assert parameters == pytest.approx(500_000, rel=0.04)


@pytest.mark.parametrize("model", ["gcn", "spn", "drew_gcn"])
def test_models_of_ring_transfer_have_the_parameters_of_a_wide_gcn(model):
    config = replace(CONFIGS["gcn_ring_transfer"], model=model, layers=10, size=20)
    model = build_model(config, load_task("ring-transfer", size=20))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(10 * 256**2, rel=0.03)


def test_metrics_match_their_definitions():
    from objectives import Classification, MultiLabel, Regression, WeightedClassification

    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    assert Classification().score(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert Regression().score(logits, logits + torch.tensor([1.0, -3.0])) == 2.0
    # column 0 is ranked 1, 0, 1: precisions 1 and 2/3; column 1 is all of one kind and does not count
    labels = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    assert MultiLabel().score(torch.tensor([[3.0, 0], [1.0, 0], [2.0, 0]]), labels) == pytest.approx((1 + 2 / 3) / 2)
    weighted = WeightedClassification.of_labels(torch.tensor([0, 0, 0, 1]), 2)
    y = torch.tensor([0, 1, 0])
    expected = torch.nn.functional.cross_entropy(logits, y, weight=torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(weighted.loss(logits, y) / weighted.weight(y), expected)
    # y said as 0, 1, 0: class 0 has precision 1/2 and recall 1, class 1 precision 1 and recall 1/2
    assert weighted.score(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        ("mutag", "MUTAG.txt or MUTAG/processed/data.pt or MUTAG/raw/MUTAG_A.txt"),
        ("peptides-func", "peptides-func/processed/train.pt or peptides-func/raw/train.pt"),
        ("pcqm-contact", "pcqm-contact/processed/train.pt or pcqm-contact/raw/train.pt"),
        ("pascalvoc-sp", "pascalvoc-sp/processed/train.pt or pascalvoc-sp/raw/train.pickle"),
        ("qm9", "qm9/processed/data_v3.pt or qm9/raw/qm9_v3.pt"),
    ],
)
def test_missing_files_are_named_and_nothing_is_left(dataset, wanted, tmp_path, monkeypatch):
    from torch_geometric.datasets import QM9, LRGBDataset, TUDataset

    def offline(self):
        raise OSError("no network")

    for kind in (QM9, LRGBDataset, TUDataset):
        monkeypatch.setattr(kind, "download", offline)
    with pytest.raises(FileNotFoundError) as caught:
        load_task(dataset, root=str(tmp_path / "data"))
    assert wanted in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)
    assert "OSError: no network" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_fetched_is_kept(tmp_path, monkeypatch):
    from torch_geometric.datasets import QM9

    def download(self):
        write_qm9(Path(self.root).parent / "source")
        (Path(self.root).parent / "source" / "qm9" / "raw" / "qm9_v3.pt").rename(Path(self.raw_dir) / "qm9_v3.pt")

    monkeypatch.setattr(QM9, "download", download)
    fetched = load_task("qm9", root=str(tmp_path)).graphs
    assert [path.name for path in tmp_path.iterdir()] == ["qm9"]
    monkeypatch.setattr(QM9, "download", None)
    assert torch.equal(load_task("qm9", root=str(tmp_path)).graphs.y, fetched.y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "cora"}, "dataset must be one of ring-transfer, enzymes"),
        ({"dataset": "ring-transfer", "size": 7}, "size must be even and at least 4, got 7"),
        ({"dataset": "qm9", "target": 12}, r"target must be in \[0, 12\), got 12"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"load_task: {message}"):
        load_task(**arguments)
