"""SampleLoader: the same batches however they are made, whoever is killed, and after a resumption."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable

import pytest
import torch

from gossamer.graph import CSR, SampledBatch, SampleLoader, neighbor_sample

WORKERS = [0, pytest.param(1, marks=pytest.mark.launch), pytest.param(2, marks=pytest.mark.launch)]
if sys.platform != "linux":
    WORKERS = [0]


def graph() -> CSR:
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(300, (2, 4000), generator=g)
    return CSR.from_edge_index(
        edges, 300, weight=torch.rand(4000, generator=g), time=torch.randint(100, (4000,), generator=g)
    )


def loader(**options) -> SampleLoader:
    settings = {"batch_size": 32, "seed": 7, "features": {"x": torch.arange(900.0).view(300, 3)}, **options}
    return SampleLoader(graph(), torch.arange(250), settings.pop("fanouts", [5, 3]), **settings)


def digest(batches: Iterable[SampledBatch]) -> str:
    """Hash of everything in the batches."""
    check = hashlib.sha256()
    for b in batches:
        s = b.subgraph
        tensors = [b.seed_index, s.node, s.row, s.col, s.edge, *b.features.values()]
        for tensor in tensors if s.batch is None else [*tensors, s.batch]:
            check.update(tensor.numpy().tobytes())
        check.update(repr((b.index, list(b.features), s.num_sampled_nodes, s.num_sampled_edges)).encode())
    return check.hexdigest()


def double(batch: dict) -> dict:
    return {"x": 2 * batch["x"], "degree": torch.bincount(batch["col"], minlength=batch["node"].numel())}


def look(batch: dict) -> dict:
    return {name: batch[name].clone() for name in ("seed_index", "epoch", "fanouts")}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_transform_knows_its_seeds_epoch_and_fanouts(num_workers):
    with loader(num_workers=num_workers, transform=look) as batches:
        for epoch, fanouts in enumerate(([5, 3], [2, 2])):
            batches.fanouts = fanouts
            for batch in batches:
                assert batch.features["seed_index"].equal(batch.seed_index)
                assert int(batch.features["epoch"]) == epoch
                assert batch.features["fanouts"].tolist() == fanouts


MODES = [
    pytest.param({}, id="uniform"),
    pytest.param({"weighted": True, "shuffle": False}, id="weighted, in order"),
    pytest.param({"seed_time": torch.full((250,), 50), "temporal": "last"}, id="temporal"),
    pytest.param({"transform": double}, id="transform"),
]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.launch
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_equal_hashes_for_every_number_of_workers_and_threads(options):
    hashes = set()
    for num_workers in (0, 1, 2):
        with loader(num_workers=num_workers, **options) as batches:
            hashes.add((digest(batches), digest(batches)))  # two epochs
    num_threads = torch.get_num_threads()
    for threads in (2, 4):
        torch.set_num_threads(threads)
        try:
            batches = loader(**options)
            hashes.add((digest(batches), digest(batches)))
        finally:
            torch.set_num_threads(num_threads)
    assert len(hashes) == 1
    first, second = hashes.pop()
    assert first != second or not options.get("shuffle", True)


def test_a_batch_is_what_neighbor_sample_gives():
    batches = list(loader())
    assert len(batches) == len(loader()) == 8
    assert sorted(torch.cat([b.seed_index for b in batches]).tolist()) == list(range(250))
    for b in batches:
        nodes = b.subgraph.node
        assert torch.equal(nodes[: b.seed_index.numel()], b.seed_index)  # the seeds are 0, 1, ...
        assert torch.equal(b.features["x"], torch.arange(900.0).view(300, 3)[nodes])
        sampled = neighbor_sample(graph(), b.seed_index, [-1, -1], seed=0)
        assert set(nodes.tolist()) <= set(sampled.node.tolist())


@pytest.mark.parametrize("num_workers", WORKERS)
def test_kept_batches_stay_as_they_were(num_workers):
    """More of them than a worker has slots: the loader gives copies instead of waiting for ever."""
    with loader(num_workers=num_workers, prefetch=1) as batches:
        kept = list(batches)
    assert digest(kept) == digest(loader())


@pytest.mark.parametrize("num_workers", WORKERS)
def test_fanouts_change_between_batches(num_workers):
    def changed(batches: SampleLoader):
        for b in batches:
            yield b
            if b.index == 2:
                batches.fanouts = [9, -1]

    expected = list(loader())[:3] + list(loader(fanouts=[9, -1]))[3:]
    with loader(num_workers=num_workers) as batches:
        assert digest(changed(batches)) == digest(expected)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_resumption(num_workers):
    whole = loader()
    expected = [*whole, *whole][5:]
    first = loader()
    for b in first:
        if b.index == 4:
            break
    with loader(num_workers=num_workers) as second:
        second.load_state_dict(first.state_dict())
        assert digest([*list(second), *list(second)]) == digest(expected)
        assert second.progress().epoch == 2
    with pytest.raises(ValueError, match="state must be that of a loader with"):
        loader(batch_size=31).load_state_dict(first.state_dict())


def test_a_loop_left_at_its_last_batch_has_finished_its_epoch():
    def left_after(batches: SampleLoader, count: int) -> str:
        taken = []
        for batch in batches:
            taken.append(batch)
            if len(taken) == count:
                break
        return digest(taken)

    batches, whole = loader(), loader()
    first = left_after(batches, 3)
    assert left_after(batches, 3) == first  # left before: begun anew
    assert left_after(batches, len(batches)) == digest(whole)
    assert batches.progress().epoch == 1
    assert left_after(batches, len(batches)) == digest(whole)


@pytest.mark.launch
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_killed_workers_are_started_again():
    with loader(num_workers=2, prefetch=1, batch_size=8) as batches:
        kept, longest, start = [], 0.0, time.monotonic()
        for b in batches:
            longest = max(longest, time.monotonic() - start)
            kept.append(b)
            if b.index % 3 == 1:
                os.kill(batches._workers[b.index % 2].process.pid, signal.SIGKILL)
            start = time.monotonic()
        assert batches.progress().num_restarts >= 5
    assert digest(kept) == digest(loader(batch_size=8))
    assert longest < 5  # most of it the start of a process; the wait itself is that of the queue


def deadly(batch: dict) -> dict:
    if multiprocessing.parent_process() is not None:
        os._exit(3)
    return {}


def failing(batch: dict) -> dict:
    if multiprocessing.parent_process() is not None:
        raise KeyError("no such column")
    return {}


TROUBLE = [
    pytest.param(failing, r"worker 0 failed(.|\n)*KeyError: 'no such column'", id="exception"),
    pytest.param(deadly, "worker 0 must survive batch 0, got exit code 3 6 times", id="exit"),
]


@pytest.mark.launch
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
@pytest.mark.parametrize(("transform", "message"), TROUBLE)
def test_what_happened_to_a_worker_is_said(transform, message):
    with loader(num_workers=1, transform=transform) as batches, pytest.raises(RuntimeError, match=message):
        next(iter(batches))


@pytest.mark.launch
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_spawned_workers_and_ranks():
    expected = list(loader(shuffle=False))
    for rank in range(2):
        options = {"num_workers": 1, "start_method": "spawn", "threads": 2, "rank": rank, "world_size": 2}
        with loader(shuffle=False, **options) as batches:
            got = list(batches)
        mine = expected[rank : 2 * (len(expected) // 2) : 2]
        assert [b.subgraph.node.tolist() for b in got] == [b.subgraph.node.tolist() for b in mine]


def test_an_older_loop_cannot_go_on():
    batches = loader()
    older, newer = iter(batches), iter(batches)
    next(older)
    next(newer)
    with pytest.raises(RuntimeError, match="only the newest loop may go on"):
        next(older)


WRONG = [
    pytest.param({"batch_size": 0}, "batch_size must be at least 1, got 0", id="batch size"),
    pytest.param({"num_workers": -1}, "num_workers must be at least 0, got -1", id="workers"),
    pytest.param({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2", id="rank"),
    pytest.param({"threads": 2}, "threads must be 1 for start_method='fork', got 2", id="threads"),
    pytest.param({"fanouts": [0]}, "fanouts must be -1, in ", id="fan-out"),
    pytest.param({"features": {"x": torch.ones(3)}}, r"features\['x'\] must be \[300, ...\]", id="features"),
    pytest.param({"start_method": "threads"}, "start_method must be one of .*, got 'threads'", id="start method"),
    pytest.param({"seed_time": torch.zeros(3)}, r"seed_time must be one integer for each of 250 seeds", id="times"),
    pytest.param({"temporal": "last"}, "seed_time must be given for temporal, window and node_time", id="no times"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)


def test_options_and_states_that_are_none_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'weigthed'"):
        loader(weigthed=True)
    with pytest.raises(TypeError, match="SampleLoader: transform must return tensors, got int for 'y'"):
        next(iter(loader(transform=lambda batch: {"y": 3})))
    for change, message in (
        ({"batch": 99}, r"batch must be in \[0, 8\], got 99"),
        ({"epoch": None}, "state must hold"),
    ):
        state = {name: v for name, v in (loader().state_dict() | change).items() if v is not None}
        with pytest.raises(ValueError, match=f"SampleLoader.load_state_dict: {message}"):
            loader().load_state_dict(state)


@pytest.mark.launch
def test_a_closed_loader_ends_its_loop():
    batches = loader(num_workers=1)
    loop = iter(batches)
    next(loop)
    batches.close()
    with pytest.raises(RuntimeError, match="the loader must be open until its loop ends"):
        next(loop)
