"""DRew layers (operators drew_gcn and gated_sum) against the same model written the way the paper's code does it.

What limits train_step (128 molecules, 19 k nodes, L=K=10, F=64): every hop of every layer has its own weight and its
own nonlinearity, so 55 products of [19 k, 64] by [64, 64] going forward and 110 going back are needed in any order of
the work. Processor time of one step, one thread, medians of 3 to 6 runs on a busy machine, hence provisional:

    the paper's way                                                    1.70 s
    the 165 products alone, as torch computes them                     0.38 s, 4.5x: 8x cannot be had with them
    fused over hops and layers, messages of all layers kept            0.82 s, of it 0.48 s in the system
    the same, messages computed again in the backward pass             0.48 s, 3.5x, of it 0.01 s in the system

The machine of these figures cleared 270 MB of fresh messages in small pages. Where the system gives large pages the
order turns. With AVX2, on cores shared with other work (the paper's way 3.7 to 3.8 s):

    4 x 2 registers per product tile, messages computed again          1.35 s, of it 0.49 s forward
    6 x 2 registers, rows in one walk and in place, no gradient of x   1.30 s, of it 0.34 s forward
    the same, messages of all layers kept (in use)                     1.05 s, 3.5x, of it 0.13 s in the system
    the 165 products alone, as torch computes them                     0.81 s, 4.6x

The step and the products alone vary with what else the cores do: 2.6x (1.26 s) and 5.0x (0.71 s) in another run.

A 6 x 2 tile runs at 80 GFLOP/s in the first-level cache, a 4 x 2 tile at 58 to 78.
With recompute=True it is 220 products.
Batch norm takes its statistics over all molecules in every hop of every layer, so that the stack cannot run molecule by
molecule out of the cache. Product before gathering, with the 55 forward products as 10
wide ones per state, was measured as products alone: no gain, 0.6 to 0.7 s of wall time beside 2.1 s for all 165, of
which they are a third. The 55 gatherings alone take 0.15 s of wall time.

A layer cannot be one long product over its hops: norm and nonlinearity come between product and sum, hop by hop. Going
back the products can be put together by state: its gradient is [N, k F] by [k F, F] over all (layer, hop) that read it,
the gradients of their weights [F, N] by [N, k F]. The same 25.7 GFLOP as torch computes them, AVX2, in turns, alone on
the machine, where torch's product of 1024 x 1024 runs at 66 GFLOP/s:

    165 products of [19 k, 64] by [64, 64]                             0.55 s, 46 GFLOP/s
    30 long ones, [19 k, 64 k] of up to 640 columns                    0.55 s, 47 GFLOP/s: bound by memory
    the same 30 by 256 rows, which stay in the second-level cache      0.42 s, 61 GFLOP/s

Beside the paper's 3.7 s of above, measured in other minutes, products alone at that speed would be 8.8x; gathering,
norms and their gradients come on top. Where the samples of a profiler fall within seven steps, AVX2, messages kept:

    products (6 x 2 registers, out of the first-level cache)           45 %
    the system, clearing fresh pages (also those of the start)         17 %
    sums for the gradients of norms, gradient of a hop's message       10 + 6 %
    gathering forward with the moments of norms, and back               9 + 3 %
    norm, nonlinearity, sum over hops                                   8 %

Of the 1.05 s of above the products are then 0.47 s, 54 GFLOP/s: at 61 the step would gain 5 %, and if no page had to be
cleared either, 1.3x in all, about 4x the paper's way. Tiles that carry rows further than now (gathered, multiplied and
measured in blocks of a few rows) cannot gain more: a norm needs its statistics over all nodes before the nonlinearity,
and its gradient two sums over all nodes before a message has one, so that every message is written and read between.
Nor can 8x be had here: it would leave nothing for all that is not a product. No step by larger tiles was built. The
165 products one by one in tiles of 256 rows, as torch computes them: 0.76 to 0.90 s where whole ones took 0.64 to 0.77
and our step 1.22 to 1.32 s, in turns (the paper's way 3.9 to 5.4 s right after): only the 30 long ones gain by tiles.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn

from gossamer.graph import CSR, DRew, gated_sum, k_hop, k_hop_pairs

import graphs
import harness

CAPABILITY = "DRew"
NUM_LAYERS, CHANNELS = 10, 64


@lru_cache
def models() -> tuple[DRew, nn.Module]:
    """Ours and theirs with equal weights; ours has no encoder and no head, as theirs."""
    try:
        from paper_drew import PaperDRewGCN
    except ImportError as error:
        raise harness.NotHere("torch_geometric is not installed") from error
    torch.manual_seed(0)
    theirs = PaperDRewGCN(CHANNELS, NUM_LAYERS, delay=1)
    ours = DRew(CHANNELS, CHANNELS, CHANNELS, NUM_LAYERS, delay=1)
    ours.encoder = ours.head = nn.Identity()
    for t, conv in enumerate(ours.convs):
        for k in range(t + 1):
            conv.lins[k].load_state_dict(theirs.convs[f"{k + 1},{t}"].lin.state_dict())
    return ours, theirs


@lru_cache
def inputs() -> tuple[Tensor, list[CSR], Tensor, Tensor]:
    graph = graphs.peptides(128)
    pairs, hops = k_hop_pairs(graph, NUM_LAYERS)
    x = torch.randn(graph.num_nodes, CHANNELS, generator=torch.Generator().manual_seed(0))
    return x, k_hop(graph, NUM_LAYERS), pairs.long(), hops.long()


def step(model: nn.Module, *arguments: object) -> Tensor:
    model.zero_grad()
    out = model(*arguments)
    (out * torch.linspace(-1, 1, CHANNELS, device=out.device)).sum().backward()
    return out.detach()


def our_step() -> Tensor:
    x, shells, _, _ = inputs()
    return step(models()[0], x, shells)


def their_step() -> Tensor:
    x, _, pairs, hops = inputs()
    return step(models()[1], x, pairs, hops)


@lru_cache
def product_operands() -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """States, gradients of messages and the 55 weights of the model, and where the products go."""
    x = inputs()[0]
    generator = torch.Generator().manual_seed(1)
    num_weights = NUM_LAYERS * (NUM_LAYERS + 1) // 2
    weights = [torch.randn(CHANNELS, CHANNELS, generator=generator) for _ in range(num_weights)]
    return x, torch.randn(x.shape, generator=generator), weights, torch.empty_like(x), torch.empty(CHANNELS, CHANNELS)


def products_alone() -> None:
    """The 165 products of a step, as torch computes them into memory that is there: no gathering, no norms."""
    x, grad, weights, rows, square = product_operands()
    for weight in weights:
        torch.mm(x, weight.T, out=rows)
        torch.mm(grad, weight, out=rows)
        torch.mm(grad.T, x, out=square)


@lru_cache
def steps() -> harness.Comparison:
    """A step of ours, of the paper's way, and its matrix products alone, in turns."""
    functions = {"ours": our_step, "paper": their_step, "products": products_alone}
    return harness.compare(functions, repeats=7, warmup=1, max_seconds=40)


@harness.goal(CAPABILITY, "forward + backward, GCN, L=K=10, F=64, against the paper's way", at_least=8.0)
def train_step() -> harness.Figure:
    flops = 3 * NUM_LAYERS * (NUM_LAYERS + 1) * inputs()[0].shape[0] * CHANNELS**2
    products = steps()["products"].median
    detail = (
        f"the 165 matrix products alone: torch {products:.3f} s, {flops / products / 1e9:.0f} GFLOP/s, "
        f"at peak {flops / harness.peak_flops():.3f} s"
    )
    return steps().figure("paper", "ours", detail)


@harness.goal(CAPABILITY, "on a GPU, the same step against the paper's way on it", unit="x", gpu=True)
def train_step_gpu() -> harness.Figure:
    x, shells, pairs, hops = inputs()
    mine, yours = (copy.deepcopy(model).cuda() for model in models())
    ours = (mine, x.cuda(), [shell.to("cuda") for shell in shells])
    theirs = (yours, x.cuda(), pairs.cuda(), hops.cuda())
    torch.testing.assert_close(step(*ours), step(*theirs), rtol=1e-2, atol=1e-2)
    return harness.compare({"ours": lambda: step(*ours), "paper": lambda: step(*theirs)}).figure("paper", "ours")


@harness.goal(CAPABILITY, "the same step against its 165 matrix products alone: what train_step could reach with torch")
def products_bound() -> harness.Figure:
    return steps().figure("paper", "products")


@lru_cache
def gin() -> DRew:
    torch.manual_seed(0)
    model = DRew(CHANNELS, CHANNELS, CHANNELS, NUM_LAYERS, conv="gin", delay=1)
    model.encoder = model.head = nn.Identity()
    return model


def gin_fused() -> Tensor:
    x, shells, _, _ = inputs()
    return step(gin(), x, shells)


def gin_by_layers() -> Tensor:
    """The same model with its layers called one after the other, as it runs with bonds or dropout."""
    x, shells, _, _ = inputs()
    model = gin()
    states = [x]
    model.zero_grad()
    for conv in model.convs:
        states.append(conv(shells, states))
    (states[-1] * torch.linspace(-1, 1, CHANNELS)).sum().backward()
    return states[-1].detach()


@harness.goal(CAPABILITY, "forward + backward, GIN, L=K=10, F=64, against its layers one by one")
def gin_step() -> harness.Figure:
    torch.testing.assert_close(gin_fused(), gin_by_layers(), rtol=1e-2, atol=1e-2)
    return harness.compare({"ours": gin_fused, "layers": gin_by_layers}, repeats=7, max_seconds=20).figure(
        "layers", "ours"
    )


@lru_cache
def gates() -> tuple[CSR, list[Tensor]]:
    """Shell 5 of the molecules, and query, key and value."""
    shell, generator = inputs()[1][4], torch.Generator().manual_seed(1)
    return shell, [torch.randn(shell.num_nodes, CHANNELS, generator=generator).requires_grad_() for _ in range(3)]


def our_gates() -> list[Tensor]:
    shell, (query, key, value) = gates()
    out = gated_sum(shell, query, key, value)
    return [out, *torch.autograd.grad(out.sum(), (query, key, value))]


def gates_per_edge() -> list[Tensor]:
    """The way of the paper's code: a row per edge for gates and values."""
    shell, (query, key, value) = gates()
    rows, cols = shell._rows, shell.col
    gate = (query.index_select(0, rows) + key.index_select(0, cols)).sigmoid()
    weighed = gate * value.index_select(0, cols)
    numerator, denominator = (torch.zeros_like(query).index_add(0, rows, v) for v in (weighed, gate))
    out = numerator / (denominator + 1e-6)
    return [out, *torch.autograd.grad(out.sum(), (query, key, value))]


@harness.goal(CAPABILITY, "gated_sum, forward + backward, shell 5, F=64, against a row per edge", at_least=3.0)
def gated() -> harness.Figure:
    for a, b in zip(our_gates(), gates_per_edge()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    times = harness.compare({"ours": our_gates, "per edge": gates_per_edge})
    shell = gates()[0]
    return times.figure("per edge", "ours", f"{shell.num_nodes} nodes, {shell.num_edges} edges")


@lru_cache
def results() -> dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]:
    """Output and gradients of one step by dtype: ours and theirs, in the same order."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        ours, theirs = (copy.deepcopy(model).to(dtype) for model in models())
        x, shells, edges, hops = inputs()
        tensors = [(step(ours, x.to(dtype), shells), step(theirs, x.to(dtype), edges, hops))]
        for t, conv in enumerate(ours.convs):
            for k in range(t + 1):
                tensors.append((conv.lins[k].weight.grad, theirs.convs[f"{k + 1},{t}"].lin.weight.grad))
                tensors.append((conv.norms[k].weight.grad, theirs.norms[f"{k + 1},{t}"].weight.grad))
        found[dtype] = ([mine.double() for mine, _ in tensors], [yours.double() for _, yours in tensors])
    return found


def distances(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    """Relative distance of every tensor, the output first."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs)]


@harness.goal(
    CAPABILITY, "relative difference of outputs and gradients to the paper's way, in float64", at_most=1e-5, unit=""
)
def difference() -> harness.Figure:
    single, double = (distances(*results()[dtype]) for dtype in (torch.float32, torch.float64))
    detail = f"{len(double)} tensors; float32: outputs {single[0]:.1e}, gradients up to {max(single):.1e}"
    return harness.Figure(max(double), detail)


@harness.goal(CAPABILITY, "worst float32 error of a gradient against float64, ours over the paper's way", at_most=1.0)
def rounding() -> harness.Figure:
    exact = results()[torch.float64][1]
    ours, theirs = (distances(side, exact) for side in results()[torch.float32])
    return harness.Figure(
        max(ours) / max(theirs),
        f"ours {max(ours):.1e}, paper {max(theirs):.1e}; outputs {ours[0]:.1e} and {theirs[0]:.1e}",
    )


if __name__ == "__main__":
    harness.main()
