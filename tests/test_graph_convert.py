"""The convert command: the same bytes as an in-memory build, within its memory, whole or not at all."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.graph import CSR, CompressedCSR, neighbor_sample
from gossamer.graph.convert import convert, main

NUM_NODES, NUM_EDGES = 300, 20_000


@pytest.fixture(scope="module")
def edges():
    """Skewed targets: one row is longer than a part of the external sort; node 299 has no edge."""
    rng = np.random.default_rng(0)
    target = (rng.random(NUM_EDGES) ** 4 * 299).astype(np.int64)
    source = rng.integers(0, 299, NUM_EDGES)
    weight = rng.random(NUM_EDGES).astype(np.float32)
    time = rng.integers(-50, 10**12, NUM_EDGES)
    return {"source": source, "target": target, "weight": weight, "time": time}


def write_csv(path, edges, header="src,dst,w,t\n", end="\n"):
    rows = zip(*(edges[name].tolist() for name in ("source", "target", "weight", "time")))
    path.write_text(header + "".join(",".join(map(repr, row)) + end for row in rows))


def write_npz(path, edges):
    edge_index = np.stack([edges["source"], edges["target"]])
    np.savez(path, edge_index=edge_index, w=edges["weight"], t=edges["time"])


def write_pairs_npz(path, edges):
    pairs = np.stack([edges["source"], edges["target"]], 1).astype(np.int32)
    np.savez_compressed(path, edges=pairs, w=edges["weight"], t=edges["time"])


def write_parquet(path, edges):
    pa = pytest.importorskip("pyarrow")
    names = {"src": edges["source"].astype(np.uint32), "dst": edges["target"], "w": edges["weight"], "t": edges["time"]}
    importlib.import_module("pyarrow.parquet").write_table(pa.table(names), path, row_group_size=7000)


def write_pyg(path, edges):
    data_type = pytest.importorskip("torch_geometric.data").Data
    index = torch.from_numpy(np.stack([edges["source"], edges["target"]]))
    torch.save(
        data_type(edge_index=index, w=torch.from_numpy(edges["weight"]), t=torch.from_numpy(edges["time"])), path
    )


def write_tsv(path, edges):
    write_csv(path, edges, header="# made by a test\n\n")
    path.write_text(path.read_text().replace(",", "\t").replace("\n", "\r\n"))


FORMATS = [
    pytest.param("edges.csv", write_csv, ("src", "dst", "w", "t"), id="csv with header"),
    pytest.param("edges.tsv", write_tsv, (0, 1, 2, 3), id="tsv with comments and CRLF"),
    pytest.param("edges.npz", write_npz, (0, 1, "w", "t"), id="npz edge_index"),
    pytest.param("edges.npz", write_pairs_npz, (0, 1, "w", "t"), id="npz edges, compressed"),
    pytest.param("edges.parquet", write_parquet, ("src", "dst", "w", "t"), id="parquet"),
    pytest.param("edges.pt", write_pyg, (0, 1, "w", "t"), id="PyG"),
]


@pytest.mark.parametrize(("name", "write", "columns"), FORMATS)
def test_the_file_has_the_bytes_of_an_in_memory_build(name, write, columns, edges, tmp_path):
    write(tmp_path / name, edges)
    source, target, weight, time = columns
    steps = []
    convert(
        [tmp_path / name], tmp_path / "graph", source=source, target=target, weight=weight, time=time, num_nodes=300,
        memory=2**20, progress=lambda stage, share: steps.append((stage, share)),
    )  # fmt: skip
    values = {name: torch.from_numpy(edges[name]) for name in edges}
    index = torch.stack([values["source"], values["target"]])
    CSR.from_edge_index(index, 300, weight=values["weight"], time=values["time"]).save(tmp_path / "expected")
    assert (tmp_path / "graph").read_bytes() == (tmp_path / "expected").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "graph", "expected"])
    assert list(dict.fromkeys(stage for stage, _ in steps)) == ["reading", "splitting", "sorting"]
    assert steps[-1] == ("sorting", 1.0)
    assert all(0 < share <= 1 for _, share in steps)


def test_several_inputs_are_one_list(edges, tmp_path):
    for part in range(3):
        write_npz(tmp_path / f"{part}.npz", {name: array[part::3] for name, array in edges.items()})
    convert([tmp_path / f"{part}.npz" for part in range(3)], tmp_path / "graph", edge_ids=False)
    order = np.concatenate([np.arange(part, NUM_EDGES, 3) for part in range(3)])
    index = torch.from_numpy(np.stack([edges["source"], edges["target"]])[:, order])
    graph, expected = CSR.open(tmp_path / "graph"), CSR.from_edge_index(index)
    assert graph.edge_ids is None
    assert torch.equal(graph.col, expected.col)
    assert torch.equal(graph.rowptr, expected.rowptr)


@pytest.mark.parametrize("text", ["", "# nothing\n", "source,target\n"])
def test_no_edges(text, tmp_path):
    (tmp_path / "edges.csv").write_text(text)
    convert([tmp_path / "edges.csv"], tmp_path / "graph", num_nodes=4)
    graph = CSR.open(tmp_path / "graph")
    assert (graph.num_nodes, graph.num_edges) == (4, 0)


@pytest.mark.parametrize("text", ["\ufefffrom,to\n3,1\n0,2\n", '"a,b",from,to\n"c,d",3,1\n"",0,2\n'])
def test_marks_of_byte_order_and_quoted_commas(text, tmp_path):
    (tmp_path / "edges.csv").write_bytes(text.encode())
    convert([tmp_path / "edges.csv"], tmp_path / "graph", source="from", target="to")
    graph = CSR.open(tmp_path / "graph")
    assert graph.to_edge_index().tolist() == [[3, 0], [1, 2]]


BAD_TEXT = [
    pytest.param("0,1\n1,x\n", ":2 must have an integer as target, got 'x'", id="no number"),
    pytest.param("0,1\n\n# c\n1,2.5\n", ":4 must have an integer as target, got '2.5'", id="fraction"),
    pytest.param("a,b\n0,1\n-3,1\n", r":3 must have a source in \[0, 281474976710656\), got -3", id="negative"),
    pytest.param("0,1\n4\n", ":2 must have 2 columns, got '4'", id="column missing"),
    pytest.param("0,1\n4,99999999999999999999\n", r":2 must have a target in \[0, 281474976710656\)", id="huge"),
    pytest.param("5\n", ":1 must have a column 1, counted from 0, got 1 columns", id="one column"),
    pytest.param("0,1\n1,2\xff\n", ":2 must be UTF-8 text", id="no text"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXT)
def test_errors_name_file_and_line_and_nothing_is_written(text, message, tmp_path, capsys):
    path = tmp_path / "edges.csv"
    path.write_bytes(text.encode("latin-1"))
    (tmp_path / "graph").write_bytes(b"before")
    with pytest.raises(ValueError, match=f"convert: .*edges.csv{message}"):
        convert([path], tmp_path / "graph")
    assert main([str(path), str(tmp_path / "graph")]) == 2
    assert "edges.csv:" in capsys.readouterr().err
    assert (tmp_path / "graph").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_wrong_line_far_into_the_file_is_found(edges, tmp_path):
    write_csv(tmp_path / "edges.csv", edges)
    lines = (tmp_path / "edges.csv").read_text().splitlines()
    lines[17_345] = "1,2,nan,4"
    (tmp_path / "edges.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"edges.csv:17346 must have a finite number as weight, got 'nan'"):
        convert([tmp_path / "edges.csv"], tmp_path / "graph", weight="w", memory=2**20)


def test_wrong_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", edge_index=np.array([[0, 5], [1, 1]]))
    with pytest.raises(ValueError, match=r"a.npz, row 1, must have a source in \[0, 5\), got 5"):
        convert([tmp_path / "a.npz"], tmp_path / "graph", num_nodes=5)
    with pytest.raises(ValueError, match=r"a.npz must hold an array 'w', got none"):
        convert([tmp_path / "a.npz"], tmp_path / "graph", weight="w")
    np.savez(tmp_path / "b.npz", edge_index=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"b.npz must hold integers as source, got float64"):
        convert([tmp_path / "b.npz"], tmp_path / "graph")
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"c.npz must be a whole .npz file"):
        convert([tmp_path / "c.npz"], tmp_path / "graph")
    (tmp_path / "d.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"d.pt must load without executing code"):
        convert([tmp_path / "d.pt"], tmp_path / "graph")


def test_wrong_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(pa.table({"a": [0, 1, None], "b": [0, 1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 2, must have a source, got none"):
        convert([tmp_path / "a.parquet"], tmp_path / "graph")
    (tmp_path / "b.parquet").write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match=r"b.parquet must be a Parquet file"):
        convert([tmp_path / "b.parquet"], tmp_path / "graph")
    with pytest.raises(ValueError, match=r"a.parquet must name a column 'c', got a, b"):
        convert([tmp_path / "a.parquet"], tmp_path / "graph", source="c")


def test_wrong_arguments(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("0,1\n0,100000000\n")
    for changes, message in [
        ({"inputs": []}, "inputs must be at least one file, got none"),
        ({"output": path}, "output must be another file than the inputs"),
        ({"memory": 5}, "memory must be at least 1048576, got 5"),
        ({"num_nodes": -1}, r"num_nodes must be in \[0, 2\*\*48\), got -1"),
        ({"memory": 2**30}, "memory must be at least 24 bytes per node, 2400000024 for ids up to 100000000"),
    ]:
        with pytest.raises(ValueError, match=f"convert: {message}"):
            convert(**({"inputs": [path], "output": tmp_path / "graph"} | changes))
    assert main([str(tmp_path / "missing.csv"), str(tmp_path / "graph")]) == 2


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux, to measure memory")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps freed memory")
def test_memory_stays_below_the_cap(tmp_path):
    """48 MB of edges within 16 MiB, and a few for the interpreter."""
    index = np.random.default_rng(0).integers(0, 20_000, (2, 3_000_000))
    np.savez(tmp_path / "edges.npz", edge_index=index)
    script = Path(__file__).parents[1] / "benchmarks" / "convert_memory.py"
    command = [sys.executable, str(script), str(tmp_path / "edges.npz"), str(tmp_path / "graph"), str(16 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24, "MiB beyond the library"
    graph = CSR.open(tmp_path / "graph")
    assert torch.equal(graph.in_degree(), torch.from_numpy(index[1]).bincount(minlength=20_000))


def test_command_line(edges, tmp_path):
    write_csv(tmp_path / "edges.csv", edges)
    command = [sys.executable, "-W", "error", "-m", "gossamer.graph.convert", str(tmp_path / "edges.csv")]
    options = [str(tmp_path / "graph"), "--source", "src", "--target", "dst", "--time", "t", "--memory", "1M"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "299 nodes, 20000 edges" in done.stdout
    assert CSR.open(tmp_path / "graph").time is not None


def test_compressed_file_samples_like_the_graph(edges, tmp_path):
    """... made in many parts; CompressedCSR.open maps it."""
    write_csv(tmp_path / "edges.csv", edges)
    assert main([str(tmp_path / "edges.csv"), str(tmp_path / "small"), "--memory", "1M", "--compressed"]) == 0
    small = CompressedCSR.open(tmp_path / "small")
    index = torch.from_numpy(np.stack([edges["source"], edges["target"]]))
    expected = CompressedCSR.from_csr(CSR.from_edge_index(index))
    assert all(a.equal(b) for a, b in zip(small._tensors(), expected._tensors()))
    ours, theirs = (neighbor_sample(g, torch.arange(40), [5, 5], seed=1) for g in (small, expected.to_csr()))
    assert ours.node.equal(theirs.node)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_compressed_files_keep_no_weights_and_times(edges, tmp_path, capsys):
    write_csv(tmp_path / "edges.csv", edges)
    assert main([str(tmp_path / "edges.csv"), str(tmp_path / "small"), "--compressed", "--time", "t"]) == 2
    assert "convert: weight and time must be None for compressed graphs" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_what_is_no_list_of_files_with_one_column_of_a_name(tmp_path):
    with pytest.raises(TypeError, match="convert: inputs must be a sequence of paths, got str"):
        convert("edges.csv", tmp_path / "graph")
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"convert: .*twice.parquet must have one column 'a', got 2"):
        convert([tmp_path / "twice.parquet"], tmp_path / "graph")
