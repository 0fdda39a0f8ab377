"""The graph file: what was saved comes back, what was altered is refused, nothing is left half-written."""

import os
import pickle
import struct
import threading
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.graph import CSR, csr_file


def small_graph(dtype=torch.float32, num_edges=13, num_nodes=7):
    edges = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0, 1, num_edges, dtype=torch.float64).to(dtype)
    return CSR.from_edge_index(edges, num_nodes, weight=weight, time=torch.arange(num_edges) * 3)


def read_everything(path):
    graph = CSR.open(path)
    return [graph.rowptr, graph.col, graph.weight, graph.time, graph.edge_ids]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "graph.csr"
    small_graph().save(path)
    return path


# Round trips


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    graph = small_graph(dtype)
    graph.save(tmp_path / "graph")
    again = CSR.open(tmp_path / "graph")
    assert again.equal(graph)
    assert again.transpose().equal(graph.transpose())
    assert (again.num_nodes, again.num_edges, again.device) == (7, 13, torch.device("cpu"))


@given(num_nodes=st.integers(0, 40), num_edges=st.integers(0, 80), keep=st.sets(st.sampled_from(["w", "t", "e"])))
@settings(deadline=None, max_examples=40)
def test_round_trip_of_any_size(tmp_path_factory, num_nodes, num_edges, keep):
    full = small_graph(num_edges=num_edges if num_nodes else 0, num_nodes=max(num_nodes, 1))
    graph = CSR(
        full.rowptr[: num_nodes + 1],
        full.col.long() if "t" in keep else full.col,
        num_nodes=num_nodes,
        weight=full.weight if "w" in keep else None,
        time=full.time if "t" in keep else None,
        edge_ids=full.edge_ids if "e" in keep else None,
    )
    path = tmp_path_factory.mktemp("files") / "graph"
    graph.save(path)
    assert CSR.open(path).equal(graph)
    assert CSR.open(path, verify=False).equal(graph)
    assert path.stat().st_size % 64 == 0


def test_sections_are_aligned_and_little_endian(saved):
    graph, content = CSR.open(saved), saved.read_bytes()
    assert all(t.data_ptr() % 64 == 0 for t in read_everything(saved))
    section = graph._header.sections["rowptr"]
    assert list(struct.unpack_from("<8q", content, section.offset)) == small_graph().rowptr.tolist()


def test_writing_to_a_tensor_does_not_reach_the_file(saved):
    before = saved.read_bytes()
    CSR.open(saved).weight.zero_()
    assert saved.read_bytes() == before
    assert CSR.open(saved).equal(small_graph())


def test_opened_graphs_are_pickled_as_their_path(saved):
    graph = CSR.open(saved)
    graph.transpose()
    assert len(pickle.dumps(graph)) < 1000
    assert pickle.loads(pickle.dumps(graph)).equal(graph)


def test_opening_reads_no_tensor(saved):
    graph = CSR.open(saved)
    assert repr(graph).startswith("CSR(num_nodes=7, num_edges=13, col=int32, weight=float32, ")
    assert not {"rowptr", "col", "weight", "time", "edge_ids"} & vars(graph).keys()


def test_saving_over_the_opened_file(saved):
    graph = CSR.open(saved)
    graph.transpose().save(saved)
    graph.save(saved)  # still the old pages, although the name has moved on
    assert CSR.open(saved).equal(small_graph())


# Altered files


def test_every_truncation_is_refused(saved, tmp_path):
    content = saved.read_bytes()
    short = tmp_path / "short"
    for length in [*range(0, 420, 7), *range(420, len(content), 50), len(content) - 1]:
        short.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"CSR.open: path must be a graph file written by CSR.save, got"):
            CSR.open(short)


def test_extension_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="cut short or extended"):
        CSR.open(saved)


def test_every_flipped_byte_is_refused(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    altered = tmp_path / "altered"
    for place in range(len(content)):  # header, tensors and the filling between them
        content[place] ^= 0x40
        altered.write_bytes(content)
        content[place] ^= 0x40
        with pytest.raises(ValueError, match=r"CSR.open: path must be a graph file written by CSR.save, got"):
            read_everything(altered)


@pytest.mark.parametrize("name", ["rowptr", "col", "weight", "time", "edge_ids"])
def test_the_altered_tensor_is_named(saved, name):
    section = CSR.open(saved)._header.sections[name]
    content = bytearray(saved.read_bytes())
    content[section.offset] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=f"the checksum of {name} does not match"):
        getattr(CSR.open(saved), name)


def forge(graph, path, **sections):
    """A file whose checksums are right and whose content is not."""
    rowptr, col, weight = (sections.get(n, getattr(graph, n)) for n in ("rowptr", "col", "weight"))
    csr_file.save(CSR._trusted(rowptr, col, graph.num_nodes, weight), path)


FORGED = [
    ({"col": torch.full((13,), 7, dtype=torch.int32)}, r"col must hold node ids in \[0, 7\), got 7"),
    ({"col": torch.full((13,), -1, dtype=torch.int32)}, "got -1"),
    ({"rowptr": torch.tensor([0, 9, 2, 3, 4, 5, 6, 13])}, "rowptr must be ascending"),
    ({"rowptr": torch.tensor([0, 1, 2, 3, 4, 5, 6, 99])}, r"rowptr must run from 0 to num_edges \(13\)"),
    ({"weight": torch.full((13,), float("nan"))}, "weight must be finite"),
    ({"rowptr": torch.zeros(3, dtype=torch.int64)}, "24 bytes of rowptr for 8 elements"),
    ({"rowptr": torch.zeros(8, dtype=torch.int32)}, "rowptr of dtype 'int32'"),
    ({"weight": torch.zeros(13, dtype=torch.int64)}, "weight of dtype 'int64'"),
]


@pytest.mark.parametrize(("sections", "message"), FORGED)
def test_forged_content_is_refused(tmp_path, sections, message):
    forge(small_graph(), tmp_path / "forged", **sections)
    with pytest.raises(ValueError, match=message):
        read_everything(tmp_path / "forged")


def rewrite_header(path, edit):
    """Change the header and give it a fitting checksum."""
    content = bytearray(path.read_bytes())
    length = CSR.open(path)._header.sections["rowptr"].offset
    edit(content)
    struct.pack_into("<I", content, length - 4, zlib.crc32(content[: length - 4]))
    path.write_bytes(content)


HEADERS = [
    pytest.param(8, "<I", 2, "format version 2, newer than 1", id="newer version"),
    pytest.param(12, "<I", 2**32 - 1, "cut short or altered in its header", id="many sections"),
    pytest.param(16, "<Q", 2**63, "64 bytes of rowptr for 9223372036854775809 elements", id="many nodes"),
    pytest.param(24, "<Q", 2**63, "52 bytes of col", id="many edges"),
    pytest.param(32, "<Q", 1, "instead of 1", id="file size"),
    pytest.param(40, "<16s", b"rowpxx", "the sections rowpxx, col", id="unknown section"),
    pytest.param(64, "<Q", 2**62, "rowptr at offset 4611686018427387904", id="offset behind the end"),
    pytest.param(64, "<Q", 321, "rowptr at offset 321", id="offset not aligned"),
]


@pytest.mark.parametrize(("place", "form", "value", "message"), HEADERS)
def test_header_that_makes_no_sense_is_refused(saved, place, form, value, message):
    rewrite_header(saved, lambda content: struct.pack_into(form, content, place, value))
    with pytest.raises(ValueError, match=message):
        CSR.open(saved)


@pytest.mark.parametrize("content", [b"", b"GOSS", b"GOSSACSR", b"\x80\x04pickle", b"PK" * 400, bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match=r"CSR.open: path must be a graph file .* got (an empty|another|a file cut)"):
        CSR.open(tmp_path / "other")


def test_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got a folder"):
        CSR.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="got no regular file"):
        CSR.open(tmp_path / "pipe")  # would wait for a writer


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CSR.open(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(saved):
    saved.chmod(0)
    with pytest.raises(PermissionError):
        CSR.open(saved)


# Writing


def test_full_disk_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        small_graph(num_edges=50).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]  # no temporary file


def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small_graph().save(tmp_path / "graph")
    assert os.listdir(tmp_path) == []


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        small_graph().save(tmp_path / "missing" / "graph")


def test_concurrent_saves_leave_one_whole_file(tmp_path):
    path = tmp_path / "graph"
    graphs = [small_graph(num_edges=2000 + i) for i in range(4)]
    problems = []

    def save_often(graph):
        for _ in range(5):
            graph.save(path)
            try:
                read_everything(path)
            except ValueError as error:
                problems.append(error)

    threads = [threading.Thread(target=save_often, args=(graph,)) for graph in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert any(CSR.open(path).equal(graph) for graph in graphs)
    assert os.listdir(tmp_path) == ["graph"]
