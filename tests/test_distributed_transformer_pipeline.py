"""A SparseTransformer over two workers: 2BP has the bits of the fused backward, and training is that of one process."""

import itertools

import pytest
import torch
import torch.distributed as dist
from workers import run_workers

from gossamer.distributed import TransformerPipeline, gpipe, one_f_one_b
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig

SHAPE, NUM_MICRO_BATCHES, NUM_STEPS = (4, 6), 4, 3
CONFIGS = {
    "hash": {"expert_layers": (1, 3), "num_experts": 4, "positions": "learned"},
    "top_k": {"expert_layers": (0, 2), "num_experts": 4, "top_k": 2, "router": "top_k", "balance_weight": 0.1},
    "recomputed": {"expert_layers": (1,), "num_experts": 4, "recompute": True},
}
VARIANTS = {
    "fused": {},
    "split": {"split_backward": True},
    "bounded": {"split_backward": True, "max_waiting": 1},
    "checkpoints": {"split_backward": True, "checkpoint_gradients": True},
}
SCHEDULES = {"1f1b": one_f_one_b, "gpipe": gpipe}


def make_model(name):
    torch.manual_seed(0)
    config = SparseTransformerConfig(vocab_size=23, d_model=16, num_layers=4, num_heads=2, d_ff=32, **CONFIGS[name])
    return SparseTransformer(config)


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_STEPS):
        ids = torch.randint(23, SHAPE, generator=generator)
        targets = torch.randint(23, SHAPE, generator=generator)
        targets[0, 3:] = -100
        yield ids, targets


def train(name, variant, make_schedule=one_f_one_b, num_micro_batches=NUM_MICRO_BATCHES):
    """Losses, and the weights of this rank's stage afterwards."""
    pipeline = TransformerPipeline(
        make_model(name),
        SHAPE,
        num_micro_batches,
        make_schedule=make_schedule,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        **VARIANTS[variant],
    )
    losses = [pipeline.train_batch(*batch) for batch in batches()]
    return losses, pipeline.stage_module.state_dict(), pipeline.counters.as_dict()


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {key: train(*key[:2], SCHEDULES[key[2]]) for key in itertools.product(CONFIGS, VARIANTS, SCHEDULES)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    run_workers(_worker, (str(folder),), num_workers=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.launch
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", ["split", "bounded", "checkpoints"])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_parts_are_the_fused_backward_to_the_bit(two_stages, name, variant, schedule):
    """After three steps of AdamW, under both schedules: losses and weights of both stages."""
    for stage in two_stages:
        (losses, weights, sent), (fused_losses, fused_weights, fused_sent) = (
            stage[name, v, schedule] for v in (variant, "fused")
        )
        assert losses == fused_losses
        assert weights.keys() == fused_weights.keys()
        assert all(torch.equal(weights[key], fused_weights[key]) for key in weights)
        assert sent == fused_sent


@pytest.mark.launch
@pytest.mark.parametrize("name", CONFIGS)
def test_two_stages_train_as_one(two_stages, name):
    losses, weights, sent = train(name, "fused")
    together = {}
    for stage in two_stages:
        assert stage[name, "fused", "1f1b"][0] == pytest.approx(losses, rel=1e-5)
        together |= stage[name, "fused", "1f1b"][1]
    assert together.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4)
    assert torch.equal(*(stage[name, "fused", "1f1b"][1]["embedding.weight"] for stage in two_stages))
    one_way = NUM_STEPS * (SHAPE[0] * SHAPE[1] * 16 + NUM_MICRO_BATCHES) * 4  # hidden states and router losses
    assert [stage[name, "fused", "1f1b"][2]["layer_level"] for stage in two_stages] == [one_way, one_way]
    assert sent["total"] == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_one_micro_batch_on_one_process_is_ordinary_training(name):
    model = make_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    expected = []
    for ids, targets in batches():
        optimizer.zero_grad()
        loss = model(ids, targets)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    losses, weights, _ = train(name, "split", num_micro_batches=1)
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in model.state_dict().items():
        if key in weights:
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="num_micro_batches must divide the batch of 4, got 3"):
        TransformerPipeline(make_model("hash"), SHAPE, 3)
    pipeline = TransformerPipeline(make_model("hash"), SHAPE, 2)
    ids = torch.zeros(SHAPE, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"train_batch: targets must be of shape \(4, 6\), got \(4, 5\)"):
        pipeline.train_batch(ids, ids[:, 1:])
