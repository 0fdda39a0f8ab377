"""Data sets: the built-in ones, files of every accepted kind, and clear refusals of everything else."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.graph import CSR, Dataset, load_dataset
from gossamer.graph.planetoid import read_planetoid

SHARED = Path(os.environ.get("GOSSAMER_DATA") or Path(__file__).parents[2] / "shared" / "data").absolute()
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="neither GOSSAMER_DATA nor ../shared/data")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No data lies around, so that every test says where its own is."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)


def tiny_arrays(**changes):
    arrays = {
        "edge_index": torch.tensor([[0, 1, 2, 2], [1, 2, 0, 2]]),
        "x": torch.arange(6.0).view(3, 2),
        "y": torch.tensor([0, 1, 1]),
        "train_mask": torch.tensor([True, False, False]),
        "val_mask": torch.tensor([False, True, False]),
        "test_mask": torch.tensor([False, False, True]),
        **changes,
    }
    return {key: value for key, value in arrays.items() if value is not None}


def save_npz(path, arrays):
    np.savez(path, **{key: value.numpy() for key, value in arrays.items()})
    return path


def assert_is_tiny(dataset, name):
    arrays = tiny_arrays()
    assert dataset.name == name
    assert dataset.graph.equal(CSR.from_edge_index(arrays["edge_index"], 3))
    assert dataset.num_classes == 2
    assert dataset.num_splits == 1
    for field, key in [("features", "x"), ("labels", "y"), *((m, m) for m in arrays if m.endswith("mask"))]:
        torch.testing.assert_close(getattr(dataset, field), arrays[key], rtol=0, atol=0)


def assert_splits_nodes(dataset):
    """Every mask non-empty, no node in two of them."""
    for index in range(dataset.num_splits):
        split = dataset.split(index)
        masks = torch.stack([split.train_mask, split.val_mask, split.test_mask]).int()
        assert masks.shape == (3, dataset.graph.num_nodes)
        assert (masks.sum(0) <= 1).all()
        assert (masks.sum(1) > 0).all()


# Built-in


def test_digits():
    pytest.importorskip("sklearn")
    dataset = load_dataset("digits")
    graph = dataset.graph
    assert (graph.num_nodes, dataset.num_classes) == (1797, 10)
    assert dataset.features.shape == (1797, 64)
    assert graph.equal(graph.to_symmetric())
    assert graph.in_degree().min() >= 8
    assert not (graph.col == graph._rows).any()
    assert dataset.train_mask.sum() == 200
    assert dataset.labels[dataset.train_mask].bincount().tolist() == [20] * 10
    assert dataset.labels[dataset.val_mask].bincount().tolist() == [30] * 10
    assert (dataset.train_mask | dataset.val_mask | dataset.test_mask).all()
    assert_splits_nodes(dataset)


def test_digits_neighbours_are_the_nearest():
    neighbors = pytest.importorskip("sklearn.neighbors")
    dataset = load_dataset("digits")
    points = dataset.features.double().numpy()
    distances, _ = neighbors.NearestNeighbors(n_neighbors=9).fit(points).kneighbors(points)
    edges = dataset.graph.to_edge_index().numpy()
    lengths = np.linalg.norm(points[edges[0]] - points[edges[1]], axis=1)
    reach = np.maximum(distances[edges[0], 8], distances[edges[1], 8])  # an edge is near for one of its ends
    assert (lengths <= reach + 1e-9).all()


def test_digits_are_the_same_every_time():
    pytest.importorskip("sklearn")
    first, again = load_dataset("digits"), load_dataset("digits")
    assert first.graph.equal(again.graph)
    assert torch.equal(first.train_mask, again.train_mask)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"digits needs scikit-learn: pip install gossamer\[train\]"):
        load_dataset("digits")


@needs_shared_data
@pytest.mark.parametrize(("name", "num_edges"), [("cora", 10556), ("citeseer", 9104)])
def test_planetoid_equals_pyg(name, num_edges):
    dataset = load_dataset(name, root=SHARED)
    assert dataset.graph.num_edges == num_edges
    assert_splits_nodes(dataset)
    io = pytest.importorskip("torch_geometric.io")
    data = io.read_planetoid_data(str(SHARED / "planetoid"), name)
    assert dataset.graph.coalesce().equal(CSR.from_edge_index(data.edge_index, data.num_nodes).coalesce())
    assert torch.equal(dataset.features, data.x)
    assert torch.equal(dataset.labels, data.y)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(dataset, mask), data[mask])


@needs_shared_data
@pytest.mark.parametrize(("name", "num_nodes", "pairs"), [("squirrel", 5201, 198353), ("chameleon", 2277, 31371)])
def test_heterophilous(name, num_nodes, pairs):
    dataset = load_dataset(name, root=SHARED)
    assert dataset.graph.num_nodes == num_nodes
    assert dataset.graph.num_edges == 2 * pairs
    assert dataset.graph.equal(dataset.graph.to_symmetric())
    assert dataset.num_splits == 10
    assert_splits_nodes(dataset)


@needs_shared_data
@pytest.mark.parametrize("layout", ["", "planetoid", "raw", "cora/raw", "Cora/raw"])
@pytest.mark.parametrize("found_by", ["root", "environment", "data folder"])
def test_places_of_the_raw_files(tmp_path, monkeypatch, layout, found_by):
    base = Path("data") if found_by == "data folder" else tmp_path / "elsewhere"
    folder = base / layout
    folder.mkdir(parents=True)
    for file in (SHARED / "planetoid").glob("ind.cora.*"):
        shutil.copy(file, folder)
    if found_by == "environment":
        monkeypatch.setenv("GOSSAMER_DATA", str(base))
    dataset = load_dataset("cora", root=base if found_by == "root" else None)
    assert dataset.graph.num_nodes == 2708


@pytest.mark.parametrize("name", ["cora", "squirrel"])
def test_missing_files_list_where_they_would_be_found(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GOSSAMER_DATA", "/from/environment")
    with pytest.raises(FileNotFoundError, match=f"the files of {name} must be in one of the folders") as caught:
        load_dataset(name, root="/from/argument")
    message = str(caught.value)
    for folder in ("/from/argument\n", "/from/environment\n", f"{tmp_path}/work/data\n", f"{name}/raw"):
        assert folder in message


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def write_planetoid(folder, **parts):
    """A graph of six nodes: two for training, one labelled only, three for testing, in disorder."""
    contents = {
        "x": np.eye(2), "tx": np.full((3, 2), [[4.0], [3], [5]]), "allx": np.arange(6.0).reshape(3, 2),
        "y": np.eye(2), "ty": np.eye(2)[[1, 0, 1]], "ally": np.eye(2)[[0, 1, 0]],
        "graph": {0: [1, 1, 0], 1: [0], 2: [5], 5: [2]}, **parts,
    }  # fmt: skip
    for part, content in contents.items():
        text = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (folder / f"ind.cora.{part}").write_bytes(text)
    (folder / "ind.cora.test.index").write_text("4\n3\n5\n")


def test_planetoid_rows_go_to_the_nodes_of_the_test_index(tmp_path):
    write_planetoid(tmp_path)
    data = read_planetoid(tmp_path, "cora")
    assert data["x"].tolist() == [[0, 1], [2, 3], [4, 5], [3, 3], [4, 4], [5, 5]]
    assert data["y"].tolist() == [0, 1, 0, 0, 1, 1]
    assert sorted(data["edge_index"].T.tolist()) == [[0, 1], [1, 0], [2, 5], [5, 2]]
    assert data["train_mask"].tolist() == [True, True, False, False, False, False]
    assert data["test_mask"].tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda f: f.write_bytes(pickle.dumps(Payload(), protocol=2)), id="runs code"),
        pytest.param(lambda f: f.write_bytes(f.read_bytes()[:30]), id="cut short"),
        pytest.param(lambda f: f.write_bytes(b""), id="empty"),
        pytest.param(lambda f: f.write_bytes(b"no pickle"), id="no pickle"),
        pytest.param(lambda f: f.write_bytes(pickle.dumps([1, 2], protocol=2)), id="other content"),
    ],
)
@pytest.mark.parametrize("part", ["allx", "graph"])
def test_damaged_planetoid_files(tmp_path, part, damage):
    write_planetoid(tmp_path)
    damage(tmp_path / f"ind.cora.{part}")
    with pytest.raises(ValueError, match=r"load_dataset: .* must hold the planetoid files of cora, got"):
        load_dataset("cora", root=tmp_path)
    assert not Path("executed").exists()


# Files


def test_npz(tmp_path):
    assert_is_tiny(load_dataset(save_npz(tmp_path / "own.npz", tiny_arrays())), "own")


def test_npz_in_the_heterophilous_layout(tmp_path):
    arrays = tiny_arrays()
    masks = {f"{m}s": torch.stack([arrays[m], arrays[m]]) for m in ("train_mask", "val_mask", "test_mask")}
    edges = torch.tensor([[0, 1], [1, 2]])
    layout = {"edges": edges, "node_features": arrays["x"], "node_labels": arrays["y"], **masks}
    dataset = load_dataset(save_npz(tmp_path / "own.npz", layout))
    assert sorted(dataset.graph.to_edge_index().T.tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert dataset.train_mask.shape == (3, 2)
    assert torch.equal(dataset.split(1).train_mask, arrays["train_mask"])


@pytest.mark.parametrize("kind", ["dictionary", "Data", "InMemoryDataset"])
def test_torch_files(tmp_path, kind):
    value = tiny_arrays()
    if kind == "Data":
        value = pytest.importorskip("torch_geometric.data").Data(**value)
    if kind == "InMemoryDataset":
        value = (value, None)
    torch.save(value, tmp_path / "own.pt")
    assert_is_tiny(load_dataset(tmp_path / "own.pt"), "own")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(Payload(), tmp_path / "bad.pt")
    np.savez(tmp_path / "bad.npz", x=np.array([Payload()], dtype=object))
    for file in ("bad.pt", "bad.npz"):
        with pytest.raises(ValueError, match=r"must load without executing code|must be an .npz of plain arrays"):
            load_dataset(tmp_path / file)
    assert not Path("executed").exists()


def test_damaged_files(tmp_path):
    for suffix in ("npz", "pt"):
        for content in (b"", b"PK\3\4 nothing", os.urandom(200)):
            path = tmp_path / f"bad.{suffix}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"load_dataset: .* must"):
                load_dataset(path)


def test_names_and_paths_that_are_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be digits, cora, .* or an existing file, got 'karate'"):
        load_dataset("karate")
    with pytest.raises(ValueError, match="got the folder"):
        load_dataset(tmp_path)
    (tmp_path / "table.csv").touch()
    with pytest.raises(ValueError, match=r"must end in .npz or .pt, got"):
        load_dataset(tmp_path / "table.csv")


WRONG = [
    ({"x": None}, "must hold a tensor x, got NoneType"),
    ({"edge_index": None}, "must hold a tensor edge_index"),
    ({"train_mask": None}, "must hold a tensor train_mask"),
    ({"x": torch.tensor([[1.0], [float("nan")], [2]])}, "x of own must be finite"),
    ({"x": torch.ones(3)}, r"x of own must be finite \[N, F\], got \[3\]"),
    ({"y": torch.tensor([0, 1])}, r"y of own must be \[3\] classes from 0, got int64 \[2\]"),
    ({"y": torch.tensor([0, -1, 1])}, "classes from 0"),
    ({"y": torch.tensor([0.0, 1, 1])}, "got float32"),
    ({"train_mask": torch.tensor([1, 0, 0])}, "train_mask of own must be bool"),
    ({"train_mask": torch.ones(4, dtype=torch.bool)}, r"must be bool \[3\] or \[3, splits\], got bool \[4\]"),
    ({"train_mask": torch.ones(3, 2, dtype=torch.bool)}, "the masks of own must have one shape"),
    ({"edge_index": torch.tensor([[0], [3]])}, r"edge_index must hold node ids in \[0, 3\), got 3"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_arrays_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(save_npz(tmp_path / "own.npz", tiny_arrays(**changes)))


def test_row_normalize(tmp_path):
    path = save_npz(tmp_path / "own.npz", tiny_arrays(x=torch.tensor([[1.0, 3], [0, 0], [-1, 1]])))
    assert load_dataset(path, row_normalize=True).features.tolist() == [[0.25, 0.75], [0, 0], [-0.5, 0.5]]


def test_data_on_a_device(tmp_path, device):
    dataset = load_dataset(save_npz(tmp_path / "own.npz", tiny_arrays())).to(device)
    assert {t.device.type for t in (dataset.graph, dataset.features, dataset.labels, dataset.val_mask)} == {device}
    assert_is_tiny(dataset.to("cpu"), "own")
    sizes = "num_features=2, num_classes=2, num_splits=1)"
    assert repr(dataset) == f"Dataset('own', {dataset.graph!r}, {sizes}"


def test_split_out_of_range(tmp_path):
    dataset = load_dataset(save_npz(tmp_path / "own.npz", tiny_arrays()))
    assert isinstance(dataset, Dataset)
    with pytest.raises(ValueError, match=r"Dataset.split: index must be in \[0, 1\), got 1"):
        dataset.split(1)
