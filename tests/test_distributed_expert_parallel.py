"""Experts on two ranks against all experts in one process: outputs, gradients, and the bytes between."""

import os

import pytest
import torch
import torch.distributed as dist
from workers import run_workers

from gossamer import sparse_nn
from gossamer.distributed import ExpertExchange, ExpertParallelMoE

D_MODEL, D_FF, NUM_EXPERTS, VOCAB = 20, 12, 6, 50

# Name: tokens per rank, dtype, router, whether the exchange is made before from the plan of the token ids.
CASES = {
    "uneven": ((13, 8), torch.float32, "top_k", False),
    "a rank without tokens": ((0, 9), torch.float32, "top_k", False),
    "no tokens at all": ((0, 0), torch.float32, "top_k", False),
    "all to one expert": ((7, 5), torch.float32, "one", False),
    "bfloat16": ((13, 8), torch.bfloat16, "top_k", False),
    "float64": ((4, 9), torch.float64, "hash", False),
    "hash, exchange made once": ((13, 8), torch.float32, "hash", True),
    "a capacity that is never reached": ((6, 6), torch.float32, "sparse", False),
}


def make_router(name):
    if name == "hash":
        return sparse_nn.HashRouter(sparse_nn.random_table(VOCAB, NUM_EXPERTS, 2, seed=3), NUM_EXPERTS)
    if name == "one":
        return sparse_nn.HashRouter(torch.full((VOCAB, 1), 4), NUM_EXPERTS)
    if name == "sparse":
        return sparse_nn.TopKRouter(D_MODEL, NUM_EXPERTS, 2, capacity_factor=100.0)
    return sparse_nn.TopKRouter(D_MODEL, NUM_EXPERTS, 2, normalize=True)


def make_layer(name, kind):
    torch.manual_seed(1)
    return kind(D_MODEL, D_FF, NUM_EXPERTS, make_router(name), num_shared_experts=1)


def make_batch(sizes, dtype):
    generator = torch.Generator().manual_seed(2)
    total = sum(sizes)
    x = torch.randn(total, D_MODEL, generator=generator).to(dtype)
    ids = torch.randint(VOCAB, (total,), generator=generator)
    return x, ids, torch.randn(total, D_MODEL, generator=generator).to(dtype)


def step(layer, x, ids, weight, plan=None):
    """Output, and gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    y = layer(x, ids, plan=plan)
    (y * weight).sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def one_process(case):
    sizes, dtype, router, _ = CASES[case]
    return step(make_layer(router, sparse_nn.MoE).to(dtype), *make_batch(sizes, dtype))


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for case, (sizes, dtype, router, once) in CASES.items():
        layer = make_layer(router, ExpertParallelMoE).to(dtype)
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        x, ids, weight = (t[rows] for t in make_batch(sizes, dtype))
        plan = layer.exchange(layer.router.hash_plan(ids)) if once else None
        found[case] = step(layer, x, ids, weight, plan) | {"bytes": layer.bytes_sent}
    layer = make_layer("top_k", ExpertParallelMoE)
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = layer(torch.randn(5, D_MODEL)).dtype
    found["odd layer"] = error_of(lambda: ExpertParallelMoE(4, 4, 3, sparse_nn.RandomRouter(3, seed=0)))
    odd = sparse_nn.RoutePlan.from_expert_ids(torch.zeros(2, 1, dtype=torch.int32), 3)
    found["odd plan"] = error_of(lambda: ExpertExchange.from_plan(odd))
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expert_parallel")
    run_workers(_worker, (str(folder),), num_workers=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-14}  # relative to the largest entry


@pytest.mark.launch
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(case, ranks):
    """Rows and expert gradients are split over the ranks; the rest is on both, its gradients to be summed."""
    expected, found = one_process(case), [one[case] for one in ranks]
    for name, wanted in expected.items():
        split = name in ("y", "x", "w_in", "w_out")
        got = torch.cat([one[name] for one in found]) if split else found[0][name] + found[1][name]
        error = (got.double() - wanted.double()).abs()
        assert error.numel() == 0 or error.max() <= TOLERANCE[wanted.dtype] * wanted.abs().max(), name


@pytest.mark.launch
def test_only_rows_for_the_other_rank_are_sent(ranks):
    """Twice forward and twice backward, to the byte: nothing is padded."""
    sizes, _, _, _ = CASES["uneven"]
    layer = make_layer("top_k", sparse_nn.MoE)
    x, _, _ = make_batch(sizes, torch.float32)
    rank_of = layer.router(x).expert_ids // (NUM_EXPERTS // 2)
    leaving = [(rank_of[:13] == 1).sum().item(), (rank_of[13:] == 0).sum().item()]
    for rank, one in enumerate(ranks):
        assert one["uneven"]["bytes"] == 4 * D_MODEL * 2 * sum(leaving), rank


@pytest.mark.launch
def test_autocast_and_errors(ranks):
    assert ranks[0]["autocast"] == torch.bfloat16
    assert ranks[0]["odd layer"] == "ExpertParallelMoE: num_experts must be a multiple of the 2 ranks, got 3"
    assert ranks[1]["odd plan"] == "ExpertExchange: plan must have a multiple of 2 experts, one block per rank, got 3"
