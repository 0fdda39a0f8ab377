"""Compressed stage boundaries: bytes to the byte, training close to the exact one, equal again after a resume."""

import os

import pytest
import torch
import torch.distributed as dist
from workers import run_workers

from gossamer.distributed.codec import RowCodec

from pipeline_problem import NUM_NODES, make_engine, make_model, make_problem

WIDTH, NUM_EPOCHS = 8, 6


@pytest.mark.parametrize("bits", [8, 4])
def test_codec_round_trip(bits):
    like = (torch.randn(7, 5), torch.arange(7), torch.randn(7, 6, dtype=torch.float64), torch.randn(0, 5))
    codec = RowCodec(bits, seed=1)
    wire = codec.encode(like)
    assert [(t.shape, t.dtype) for t in codec.buffers(like)] == [(t.shape, t.dtype) for t in wire]
    found = codec.decode(wire, like)
    assert torch.equal(found[1], like[1])
    for tensor, back in zip(like, found):
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
        torch.testing.assert_close(back, tensor, rtol=0, atol=float(tensor.abs().amax()) / 6 if tensor.numel() else 0)
    assert codec.num_encoded == 3
    assert not torch.equal(codec.encode(like)[0], wire[0])  # no two messages are rounded alike


def _train(folder, bits):
    torch.set_num_threads(1)
    graph, data = make_problem()
    engine = make_engine(
        make_model("gcn"), graph, data, num_chunks=4, refresh_period=2, boundary_bits=bits, backend="torch"
    )
    losses = [engine.train_epoch().loss for _ in range(NUM_EPOCHS // 2)]
    saved = engine.save_checkpoint(f"{folder}/{bits}")
    losses += [engine.train_epoch().loss for _ in range(NUM_EPOCHS // 2)]
    evaluation = engine.evaluate()
    assert engine.evaluate() == evaluation  # exact, whatever the bits
    sent = engine.counters.layer_level
    engine.load_checkpoint(saved)
    again = [engine.train_epoch().loss for _ in range(NUM_EPOCHS // 2)]
    return {"losses": losses, "again": again, "bytes": sent, "accuracy": evaluation.accuracy["train"]}


def _worker(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({bits: _train(folder, bits) for bits in (None, 8, 4)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_workers(tmp_path):
    run_workers(_worker, (str(tmp_path),), num_workers=2)
    found, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    row_bytes = {None: 4 * WIDTH, 8: WIDTH + 4, 4: WIDTH // 2 + 4}
    for bits, run in found.items():
        assert run["losses"] == other[bits]["losses"]
        assert run["again"] == run["losses"][NUM_EPOCHS // 2 :]
        assert run["bytes"] == 2 * NUM_NODES * row_bytes[bits]
    exact = found[None]["losses"]
    assert found[8]["losses"] != exact
    assert found[8]["losses"] == pytest.approx(exact, rel=2e-3)
    assert found[4]["losses"] == pytest.approx(exact, rel=3e-2)
