"""The ``gossamer`` command.

``gossamer doctor`` says what this installation can do and checks that it computes; ``gossamer convert`` turns edge
lists into the memory-mapped graph format; ``gossamer bench`` measures the operators.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence

__all__ = ["main"]

# What Gossamer works with, and the part of it that needs each.
COMPANIONS = {
    "deepspeed": "training through the deepspeed launcher",
    "torch-geometric": "PyG data, transforms and loaders",
    "transformers": "attention and experts in transformers models",
    "pymetis": "graph partitions",
    "scipy": "conversion of sparse matrices",
    "scikit-learn": "metrics of the examples",
    "hnswlib": "nearest neighbours for cold-start nodes",
    "pyarrow": "Parquet edge lists",
    "cupy-cuda13x": "CSR interchange on a GPU",
}
MIN_SHARED_MEMORY = 64 << 20  # what a container gives by default; two workers outgrow it soon
Line = tuple[str, str, str]  # ok, note or FAIL; what; how it is


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if the doctor found something broken, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["convert"]:  # it has a parser of its own, as bench has
        from gossamer.graph.convert import main as convert

        return convert(arguments[1:], program="gossamer convert")
    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    parser = argparse.ArgumentParser(prog="gossamer", description="Systems for graph and sparse models on PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="say what was built, what this machine has, and check that operators compute")
    commands.add_parser("convert", help="turn edge lists (CSV, Parquet, npz, PyG) into the memory-mapped graph format")
    commands.add_parser("bench", help="measure operators over their sizes: share of the floor, ratio to other ways")
    parser.parse_args(arguments)
    return doctor()


def _bench(arguments: Sequence[str]) -> int:
    """Run the sweeps of benchmarks/, whose modules import each other by name."""
    folder = os.path.dirname(str(importlib.import_module("gossamer.benchmarks").__file__))
    sys.path.insert(0, folder)
    code: int = importlib.import_module("sweep").main(arguments, program="gossamer bench")
    return code


def doctor() -> int:
    """Print one line per finding; returns 1 if anything failed."""
    failed = False
    for verdict, what, state in _findings():
        failed = failed or verdict == "FAIL"
        print(f"{verdict:>4}  {what:<18} {state}", flush=True)
    print("something is broken: see FAIL above" if failed else "all is well")
    return int(failed)


def _findings() -> Iterator[Line]:
    yield "ok", "python", platform.python_version()
    try:
        import torch
    except ImportError as error:
        yield "FAIL", "torch", f"does not load: {error}"
        return
    yield "ok", "torch", torch.__version__
    try:
        import gossamer
    except (ImportError, OSError) as error:
        yield "FAIL", "gossamer", f"does not load: {error}"
        return
    yield "ok", "gossamer", gossamer.__version__
    yield "ok", "instruction set", gossamer.instruction_set()
    yield _cores(torch.get_num_threads())
    yield _cuda()
    yield _self_check()
    yield _shared_memory()
    yield from _companions()


def _cores(threads: int) -> Line:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "ok", "cores", f"{cores}, torch uses {threads} threads"


def _cuda() -> Line:
    import torch

    import gossamer

    if gossamer.cuda_loaded() and torch.cuda.is_available():
        return "ok", "CUDA kernels", f"loaded, {torch.cuda.get_device_name(0)}"
    if not gossamer.cuda_built():
        return "note", "CUDA kernels", "not built: no nvcc, or GOSSAMER_CUDA=0, when this package was installed"
    if torch.version.cuda is None:
        return "note", "CUDA kernels", "built, not loaded: this torch is a CPU build"
    return "note", "CUDA kernels", "built; no GPU is visible" if gossamer.cuda_loaded() else "built, but did not load"


def _self_check() -> Line:
    try:
        wrong = _differing_operators()
    except Exception as error:  # whatever is wrong with an operator is a finding
        return "FAIL", "self-check", f"{type(error).__name__}: {error}"
    if wrong:
        return "FAIL", "self-check", f"{', '.join(wrong)} differ from torch: please report this with the lines above"
    return "ok", "self-check", "operators agree with torch"


def _differing_operators() -> list[str]:
    """Names of what does not give torch's results, of one operator with its gradient and one of attention."""
    import torch

    from gossamer.graph import CSR, aggregate
    from gossamer.sparse_nn import decode_attention

    edge_index = torch.randint(50, (2, 400), generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 1, 50 * 12).view(50, 12).requires_grad_()
    sums = [
        aggregate(CSR.from_edge_index(edge_index, num_nodes=50), x),
        torch.zeros(50, 12).index_add(0, edge_index[1], x[edge_index[0]]),
    ]
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in sums]
    q, k, v = torch.linspace(-1, 1, 3 * 9 * 16).view(3, 1, 9, 1, 16)
    scores = torch.einsum("bqhd,bshd->bhqs", q[:, :1], k) / 4
    attended = [decode_attention(q[:, :1], k, v), torch.einsum("bhqs,bshd->bqhd", scores.softmax(-1), v)]
    pairs = {"aggregate": sums, "gradients of aggregate": gradients, "decode_attention": attended}
    return [name for name, (ours, theirs) in pairs.items() if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)]


def _shared_memory() -> Line:
    if not os.path.isdir("/dev/shm"):
        return "note", "shared memory", "no /dev/shm, which torch's loaders with workers need"
    free = shutil.disk_usage("/dev/shm").free
    text = f"{free / 2**20:,.0f} MiB free in /dev/shm"
    if free < MIN_SHARED_MEMORY:
        return "note", "shared memory", f"{text}: little for torch's loaders (in a container: --shm-size=1g)"
    return "ok", "shared memory", text


def _companions() -> Iterator[Line]:
    for package, purpose in COMPANIONS.items():
        try:
            yield "ok", package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield "note", package, f"not installed ({purpose})"


if __name__ == "__main__":
    sys.exit(main())
