"""Experts inside DeepSpeed on two gloo ranks: training against one process, checkpoints, and our gate in its layer."""

import os

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from workers import run_workers

from gossamer import distributed, sparse_nn
from gossamer.distributed.launcher import free_port

D_MODEL, D_FF, NUM_EXPERTS, VOCAB, STEPS = 16, 12, 4, 30, 4


class Model(nn.Module):
    def __init__(self, make_layer):
        super().__init__()
        torch.manual_seed(0)
        table = sparse_nn.random_table(VOCAB, NUM_EXPERTS, 2, seed=1)
        self.embedding = nn.Embedding(VOCAB, D_MODEL)
        self.moe = make_layer(
            D_MODEL, D_FF, NUM_EXPERTS, sparse_nn.WeightedHashRouter(D_MODEL, table, NUM_EXPERTS), num_shared_experts=1
        )
        self.head = nn.Linear(D_MODEL, VOCAB)

    def forward(self, ids):
        logits = self.head(self.moe(self.embedding(ids), ids))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def batch(step):
    return torch.randint(VOCAB, (4, 9), generator=torch.Generator().manual_seed(step))


def one_process():
    model = Model(sparse_nn.MoE)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5), []
    for step in range(STEPS):
        loss = model(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_engine(stage, ep_size):
    import deepspeed
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    from gossamer.distributed.deepspeed_moe import DeepSpeedMoE

    model = Model(lambda *args, **named: DeepSpeedMoE(*args, ep_size=ep_size, **named))
    parameters = split_params_into_different_moe_groups_for_optimizer(
        {"params": list(model.parameters()), "name": "all"}
    )
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    return deepspeed.initialize(model=model, optimizer=torch.optim.SGD(parameters, lr=0.5), config=config)[0]


def train(engine, rank, steps):
    """Mean loss of both ranks by step; each takes half of the batch."""
    losses = []
    for step in steps:
        loss = engine(batch(step)[2 * rank : 2 * rank + 2])
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / 2)
    return losses


def gate_of_ours(rank):
    """Output and input gradient of DeepSpeed's layer with a hash gate, plain, recomputed late, and the errors."""
    import deepspeed.moe.layer

    from gossamer.distributed.deepspeed_moe import checkpoint_contexts, replace_gate, token_ids

    torch.manual_seed(3)
    layer = deepspeed.moe.layer.MoE(D_MODEL, nn.Linear(D_MODEL, D_MODEL), NUM_EXPERTS, ep_size=2)
    for i, expert in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
        nn.init.constant_(expert.weight, 0.01 * (1 + rank * 2 + i))
    layer.set_deepspeed_parallelism()
    table = sparse_nn.random_table(VOCAB, NUM_EXPERTS, seed=1)
    replace_gate(layer, sparse_nn.HashRouter(table, NUM_EXPERTS))
    ids, found = batch(0)[rank], {}
    x = torch.randn(9, D_MODEL, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    with token_ids(ids):
        found["y"] = layer(x)[0]
    (found["grad"],) = torch.autograd.grad(found["y"].square().sum(), x)
    with token_ids(ids):
        again = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False, context_fn=checkpoint_contexts)
    with token_ids(ids.flip(0)):  # the next batch is already here when the first is recomputed
        (found["late"],) = torch.autograd.grad(again.square().sum(), x)
    bias = layer.deepspeed_moe.experts.deepspeed_experts[0].bias.detach()
    scale = 0.01 * (1 + table[ids].float())
    found["wanted"] = scale * x.detach().sum(1, keepdim=True) + bias
    found["y"] = found["y"].detach()
    for name, context in (("none", None), ("length", token_ids(ids[:5]))):
        try:
            if context is None:
                layer(x)
            else:
                with context:
                    layer(x)
        except ValueError as error:
            found[name] = str(error)
    return found


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    distributed.init_distributed("cpu")
    found = {"gate": gate_of_ours(rank)}
    for stage, ep_size in CASES:
        engine = make_engine(stage, ep_size)
        losses = train(engine, rank, range(2))
        engine.save_checkpoint(os.path.join(folder, f"{stage}-{ep_size}"), tag="half")
        losses += train(engine, rank, range(2, STEPS))
        resumed = make_engine(stage, ep_size)
        resumed.load_checkpoint(os.path.join(folder, f"{stage}-{ep_size}"), tag="half")
        found[stage, ep_size] = losses, train(resumed, rank, range(2, STEPS))
    torch.save(found, os.path.join(folder, f"{rank}.pt"))


CASES = [(0, 2), (1, 2), (2, 2), (1, 1)]  # ZeRO stage, ranks that share the experts


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("deepspeed_moe")
    run_workers(_worker, (str(free_port()), str(folder)), num_workers=2)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.launch
@pytest.mark.parametrize(("stage", "ep_size"), CASES)
def test_training_equals_one_process_and_resumes_to_the_bit(stage, ep_size, ranks):
    folder, found = ranks
    expected = one_process()
    for one in found:
        losses, resumed = one[stage, ep_size]
        assert losses == pytest.approx(expected, rel=1e-5)
        assert resumed == losses[2:]
    files = {path.name for path in (folder / f"{stage}-{ep_size}" / "half").glob("layer_0_expert_*")}
    assert len(files) == NUM_EXPERTS  # one per expert


@pytest.mark.launch
def test_hash_gate_in_deepspeeds_layer(ranks):
    for one in ranks[1]:
        gate = one["gate"]
        torch.testing.assert_close(gate["y"], gate["wanted"])
        assert torch.equal(gate["late"], gate["grad"])
        assert gate["none"] == "RouterGate: token ids must be given by `with token_ids(ids)`, got none"
        assert gate["length"] == "RouterGate: token_ids must hold one id per token (9), got 5"
