"""Worker processes of a test, forked from one process that has imported what all of them need."""

import multiprocessing

import torch.multiprocessing

# Torch loads its compiler when an optimizer is made. Every import here is one that a worker would spend seconds on.
multiprocessing.set_forkserver_preload(["torch._dynamo", "gossamer.distributed", "gossamer.graph", "deepspeed"])


def run_workers(work, arguments, *, num_workers):
    """Call ``work(rank, *arguments)`` in processes of their own; an error in one of them is raised here."""
    torch.multiprocessing.start_processes(work, arguments, nprocs=num_workers, start_method="forkserver")
