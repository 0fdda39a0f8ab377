"""SharedMemoryQueue: what is put is got, from any process, and whoever is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gossamer.graph import SharedMemoryQueue

import killed_producers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory without a name needs Linux")
SECONDS = 30  # more than any wait here takes
FORK = multiprocessing.get_context("fork")


def equal(a: dict, b: dict) -> bool:
    same = all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)
    return list(a) == list(b) and same


BATCHES = [
    pytest.param({}, id="no tensor"),
    pytest.param({"x": torch.arange(5)}, id="one tensor"),
    pytest.param({"x": torch.tensor(2.5), "y": torch.ones(0, 3), "z": torch.ones(2, 3, 4)}, id="shapes"),
    pytest.param(
        {str(d): torch.ones(3, dtype=d) for d in (torch.bool, torch.int8, torch.bfloat16, torch.float64, torch.int32)},
        id="dtypes",
    ),
    pytest.param({"x": torch.arange(12).view(3, 4).T}, id="not contiguous"),
    pytest.param({"x": torch.ones(3, requires_grad=True)}, id="with gradient"),
    pytest.param({"x": torch.tensor([1 + 2j, 3j]).conj(), "y": torch.tensor([2j]).conj().imag}, id="lazily conjugate"),
    pytest.param({"ä name: with, signs": torch.ones(1)}, id="name"),
]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_comes_back(batch):
    with SharedMemoryQueue(2, 4096) as queue:
        queue.put(batch, timeout=SECONDS)
        assert equal(batch, queue.get(timeout=SECONDS))


def test_in_order_and_without_a_copy():
    queue = SharedMemoryQueue(3, 4096)
    for i in range(3):
        with queue.write({"x": (torch.int64, (2,))}) as out:
            out["x"].fill_(i)
    got = [queue.get(timeout=0) for _ in range(3)]
    assert [int(batch["x"][0]) for batch in got] == [0, 1, 2]
    assert queue.counts()["reading_here"] == 3  # tensors hold their slots
    part = got[0]["x"][1:]
    del got[0]
    assert queue.counts()["free"] == 0  # and so do their views
    del part
    assert queue.counts()["free"] == 1


def test_back_pressure():
    queue = SharedMemoryQueue(2, 4096)
    queue.put({"x": torch.ones(1)})
    queue.put({"x": torch.ones(1)})
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"put: timeout must be longer for this queue, got 0\.1 s"):
        queue.put({"x": torch.ones(1)}, timeout=0.1)
    assert time.monotonic() - start < 2
    thread = threading.Timer(0.2, lambda: queue.get(timeout=SECONDS))
    thread.start()
    queue.put({"x": torch.ones(1)}, timeout=SECONDS)
    thread.join()
    assert queue.counts()["taken"] == 1


def test_a_write_that_fails_is_dropped():
    queue = SharedMemoryQueue(1, 4096)
    with pytest.raises(ZeroDivisionError), queue.write({"x": (torch.float32, (3,))}):
        raise ZeroDivisionError
    assert queue.counts()["free"] == 1
    assert queue.counts()["put"] == 0


def test_closing_ends_everything():
    queue = SharedMemoryQueue(2, 4096)
    queue.put({"x": torch.ones(1)})
    queue.close()
    with pytest.raises(EOFError, match="put: queue must be open"):
        queue.put({"x": torch.ones(1)})
    queue.get()
    with pytest.raises(EOFError, match="get: queue must be open"):
        queue.get()


def test_a_reader_that_keeps_every_slot_is_told():
    queue = SharedMemoryQueue(1, 4096)
    queue.put({"x": torch.ones(1)})
    kept = queue.get()
    with pytest.raises(RuntimeError, match="got 1 that this process still uses"):
        queue.get(timeout=SECONDS)
    assert kept["x"].item() == 1


WRONG = [
    pytest.param(lambda: SharedMemoryQueue(0, 8), ValueError, r"num_slots must be in \[1, 65536\], got 0", id="slots"),
    pytest.param(lambda: SharedMemoryQueue(1, 0), ValueError, "slot_bytes must be at least 1, got 0", id="bytes"),
    pytest.param(lambda: SharedMemoryQueue(8, 1 << 50), MemoryError, "must be at most the free memory", id="memory"),
    pytest.param(lambda: SharedMemoryQueue(1, 8, name=""), ValueError, "name must have 1 to 80 bytes", id="name"),
    pytest.param(lambda: SharedMemoryQueue.attach("no such queue"), ValueError, "must be that of an open", id="attach"),
    pytest.param(
        lambda: SharedMemoryQueue(1, 64).put({"x": torch.ones(99)}), ValueError, "at most slot_bytes = 64", id="large"
    ),
    pytest.param(lambda: SharedMemoryQueue(1, 64).put({"x": [1]}), TypeError, "must be a dense tensor", id="list"),
    pytest.param(
        lambda: SharedMemoryQueue(1, 640).put({"x": torch.ones(2, 2).to_sparse()}), TypeError, "got torch.sparse_coo",
        id="sparse",
    ),
    pytest.param(
        lambda: SharedMemoryQueue(1, 640).put({"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)}),
        TypeError, "must not be quantized, got torch.quint8", id="quantized",
        marks=pytest.mark.filterwarnings("ignore:.*quantize"),
    ),
    pytest.param(lambda: SharedMemoryQueue(1, 640).put({(1,): torch.ones(2)}), TypeError, "names must be", id="names"),
    pytest.param(
        lambda: SharedMemoryQueue(1, 640).write({"x": (torch.float32, (-3,))}).__enter__(), ValueError,
        r"tensors\['x'\] must be a dtype and sizes of at least 0, got torch.float32 and \(-3,\)", id="sizes",
    ),
    pytest.param(lambda: SharedMemoryQueue(1, 64).get(timeout=-1), ValueError, "timeout must be None or at", id="time"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names():
    name = f"test {os.getpid()}"
    with SharedMemoryQueue(2, 4096, name=name) as queue:
        with pytest.raises(ValueError, match="name must not be in use"):
            SharedMemoryQueue(2, 4096, name=name)
        SharedMemoryQueue.attach(name).put({"x": torch.arange(3)})
        assert queue.get(timeout=SECONDS)["x"].tolist() == [0, 1, 2]
    SharedMemoryQueue(2, 4096, name=name).close()  # free again


def send(queue: SharedMemoryQueue, sender: int, count: int) -> None:
    for i in range(count):
        queue.put({"from": torch.tensor([sender, i])}, timeout=SECONDS)


WORKERS = [
    pytest.param(threading.Thread, id="threads"),
    *(
        pytest.param(torch.multiprocessing.get_context(method).Process, id=method, marks=pytest.mark.launch)
        for method in ("fork", "spawn")
    ),
]


@pytest.mark.parametrize("worker", WORKERS)
def test_several_producers_and_consumers(worker):
    """Every batch arrives once, and those of one producer at one consumer in their order."""
    queue = SharedMemoryQueue(4, 4096)
    producers = [worker(target=send, args=(queue, s, 50)) for s in range(2)]
    for producer in producers:
        producer.start()
    seen: list[list] = [[], []]

    def receive(mine: list) -> None:
        with contextlib.suppress(EOFError):
            while True:
                mine.append(tuple(queue.get()["from"].tolist()))

    threads = [threading.Thread(target=receive, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for producer in producers:
        producer.join(SECONDS)
    queue.close()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(seen[0] + seen[1]) == [(s, i) for s in range(2) for i in range(50)]
    for mine in seen:
        for s in range(2):
            assert [x for x in mine if x[0] == s] == sorted(x for x in mine if x[0] == s)


@pytest.mark.launch
def test_100_killed_producers():
    """No batch torn, no wait above a second, every slot free at the end."""
    found = killed_producers.survive(100)
    assert found.longest < 1
    assert found.num_torn == 0
    assert found.num_lost == 0


PARENT = """
import os, sys, time, torch
from gossamer.graph import SharedMemoryQueue
queue = SharedMemoryQueue(2, 4096)
for role in (queue.put, lambda _: queue.get()):  # one waits for space, one for batches
    if role is not queue.put:
        queue = SharedMemoryQueue(2, 4096)
    if os.fork() == 0:
        try:
            while True:
                role({"x": torch.ones(3)})
        except EOFError:
            os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def holders() -> set[int]:
    """Processes that map the memory of a queue of the killed parent's command."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                PARENT.encode() in (folder / "cmdline").read_bytes()
                and "gossamer-queue" in (folder / "maps").read_text()
            ):
                found.add(int(folder.name))
    return found


@pytest.mark.launch
def test_nothing_is_left_when_the_parent_is_killed():
    before = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    assert len(holders()) == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 5
    while holders() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holders() == set()
    assert {name for name in set(os.listdir("/dev/shm")) - before if "gossamer" in name} == set()
