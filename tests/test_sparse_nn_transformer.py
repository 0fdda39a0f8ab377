"""SparseTransformer: against a loop over tokens, against its dense twin, and what its hashes may look at."""

import dataclasses

import pytest
import torch

from gossamer.sparse_nn import (
    HashRouter,
    SparseTransformer,
    SparseTransformerConfig,
    balanced_table,
    matched_d_ff,
    multi_hash_table,
    random_table,
)
from gossamer.sparse_nn.moe import dense_mlp

SMALL = {"vocab_size": 50, "d_model": 32, "num_layers": 3, "num_heads": 4, "d_ff": 48, "max_len": 24}
VARIANTS = {
    "dense": {},
    "hash": {"expert_layers": (0, 2), "num_experts": 4},
    "two experts": {"expert_layers": (1,), "num_experts": 4, "top_k": 2, "activation": "swiglu"},
    "MultiHash": {"expert_layers": (1,), "num_experts": 4, "num_hashes": 3, "activation": "relu"},
    "weighted hash": {"expert_layers": (1, 2), "num_experts": 4, "top_k": 2, "router": "weighted_hash"},
    "Switch": {"expert_layers": (1,), "num_experts": 4, "router": "top_k", "capacity_factor": 1.25,
               "balance_weight": 0.01},
    "previous token": {"expert_layers": (1,), "num_experts": 4, "hash": "previous_token"},
    "bigram": {"expert_layers": (1,), "num_experts": 4, "hash": "bigram", "positions": "learned"},
    "position": {"expert_layers": (1,), "num_experts": 4, "hash": "position"},
    "shared expert": {"expert_layers": (1,), "num_experts": 4, "num_shared_experts": 1, "num_kv_heads": 4},
}  # fmt: skip


def make(name="hash", seed=0, table=None, **changes):
    torch.manual_seed(seed)
    return SparseTransformer(SparseTransformerConfig(**{**SMALL, **VARIANTS[name], **changes}), table=table)


def ids(batch=3, length=10, seed=1):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(model, *inputs):
    model.zero_grad()
    loss = model(*inputs)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_and_gradients(name, device):
    model, tokens = make(name).to(device), ids().to(device)
    logits = model(tokens)
    assert logits.shape == (3, 10, 50)
    loss, grads = gradients(model, tokens, tokens.roll(-1, 1))
    assert loss.shape == ()
    assert all(grad.isfinite().all() for grad in grads)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["hash", "two experts", "MultiHash", "previous token", "bigram", "position"])
def test_hash_layer_is_a_loop_over_tokens(name):
    """Every token through the experts that its hash names, one at a time."""
    model, tokens = make(name), ids()
    layer = model.config.expert_layers[0]
    seen = {}
    model.blocks[layer].feed_forward.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    model(tokens)
    experts = model.blocks[layer].feed_forward
    for b, t in [(0, 0), (0, 9), (1, 4), (2, 7)]:
        now, before = int(tokens[b, t]), int(tokens[b, t - 1]) if t else model.config.bos_id
        chosen = {
            "previous token": lambda before=before: model.router.table[before].tolist(),
            "bigram": lambda now=now, before=before: [(now + 1000003 * before) % 4],
            "position": lambda t=t: [t % 4],
        }.get(name, lambda now=now: model.router.table[now].tolist())()
        x = seen["x"][b, t][None]
        wanted = sum(dense_mlp(x, experts.w_in[e], experts.w_out[e], model.config.activation) for e in chosen)
        torch.testing.assert_close(seen["y"][b, t][None], wanted, rtol=1e-4, atol=1e-5)


def copy_dense(dense, sparse, shape=lambda weight: weight[None]):
    """Give the experts of ``sparse`` the weights of the dense feed-forward layers."""
    state = dense.state_dict()
    for layer in sparse.config.expert_layers:
        for name in ("w_in", "w_out"):
            weight = state.pop(f"blocks.{layer}.feed_forward.{name}.weight")
            state[f"blocks.{layer}.feed_forward.{name}"] = shape(weight)
    if sparse.router is not None:
        state["router.table"] = sparse.router.table
    sparse.load_state_dict(state)


def test_one_expert_is_the_dense_model():
    dense, sparse = make("dense"), make("hash", num_experts=1)
    copy_dense(dense, sparse)
    tokens = ids()
    torch.testing.assert_close(sparse(tokens), dense(tokens))
    assert sparse.num_parameters() == dense.num_parameters() == sparse.num_parameters(active=True)


def test_multi_hash_of_one_slice_per_segment_is_the_dense_model():
    """The hidden width of the dense layer cut into 3 segments, each with one alternative."""
    dense = make("dense", activation="relu")
    sparse = make("MultiHash", num_experts=1)

    def segments(weight):
        rows = weight.shape == (48, 32)
        return torch.stack(weight.chunk(3, dim=0 if rows else 1))

    copy_dense(dense, sparse, segments)
    torch.testing.assert_close(sparse(ids()), dense(ids()))


def test_multi_hash_costs_what_one_hash_costs():
    assert torch.equal(multi_hash_table(50, 4, 1, seed=3), random_table(50, 4, seed=3))
    one, three = make("MultiHash", num_hashes=1), make("MultiHash")
    assert three.num_parameters() == one.num_parameters()
    assert three.num_parameters(active=True) == one.num_parameters(active=True) < one.num_parameters()


@pytest.mark.parametrize("name", [*VARIANTS, "oracle"])
def test_no_logit_sees_a_later_token_except_the_oracle(name):
    oracle = {"expert_layers": (1,), "num_experts": 4, "hash": "oracle_future"}
    model = make("hash", **oracle) if name == "oracle" else make(name)
    model.eval()
    tokens = ids()
    changed = tokens.clone()
    for other in range(1, 50):  # a later token that goes elsewhere
        changed[:, 6] = (tokens[:, 6] + other) % 50
        if model.router is None or bool((model.router.table[changed[:, 6]] != model.router.table[tokens[:, 6]]).all()):
            break
    before, after = model(tokens), model(changed)
    same = torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert same == (name != "oracle")
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-6)


def test_the_plan_is_built_once_for_all_layers_forward_and_backward(monkeypatch):
    calls = []
    original = HashRouter.hash_plan
    monkeypatch.setattr(HashRouter, "hash_plan", lambda *args: calls.append(1) or original(*args))
    for recompute in (False, True):
        model = make("hash", expert_layers=(0, 1, 2), recompute=recompute)
        model(ids(), ids().roll(-1, 1)).backward()
    assert len(calls) == 2


def test_experts_that_no_token_meets_get_no_gradient():
    model = make("hash")
    tokens = torch.full((1, 5), 7)
    model(tokens, tokens).backward()
    met = int(model.router.table[7])
    for layer in model.config.expert_layers:
        norms = model.blocks[layer].feed_forward.w_in.grad.flatten(1).norm(dim=1)
        assert norms[met] > 0
        assert norms.nonzero().flatten().tolist() == [met]


@pytest.mark.parametrize("name", ["hash", "Switch", "weighted hash"])
def test_recomputed_blocks_give_the_same_gradients(name):
    plain, late = make(name, dropout=0.3), make(name, dropout=0.3, recompute=True)
    results = []
    for model in (plain, late):
        torch.manual_seed(5)
        results.append(gradients(model, ids(), ids().roll(-1, 1)))
    assert torch.equal(results[0][0], results[1][0])
    for one, two in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_as_one_graph(name):
    torch.compiler.reset()
    model = make(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if name == "Switch":  # in training the number of routes kept is known only to the device
        model.eval()
    loss, grads = gradients(model, ids(), ids())
    again, compiled_grads = gradients(compiled, ids(), ids())
    torch.testing.assert_close(again, loss)
    for one, two in zip(grads, compiled_grads):
        torch.testing.assert_close(one, two)


def test_autocast_and_low_precision():
    model, tokens = make("hash"), ids()
    loss = model(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(tokens, tokens)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss, rtol=2e-2, atol=0)
    torch.testing.assert_close(model.bfloat16()(tokens, tokens), loss, rtol=2e-2, atol=0)


def test_loss_counts_targets_that_are_there_and_router_losses_in_training_alone():
    model, tokens = make("Switch", capacity_factor=None), ids()
    targets = tokens.clone()
    targets[:, 4:] = -100
    model.eval()
    plain = model(tokens, targets)
    wanted = torch.nn.functional.cross_entropy(model(tokens)[:, :4].flatten(0, 1), tokens[:, :4].flatten())
    torch.testing.assert_close(plain, wanted)
    model.train()
    aux_loss = model(tokens, targets) - plain
    torch.testing.assert_close(aux_loss, model.blocks[1].feed_forward.routing.aux_loss)
    assert aux_loss > 0


def test_evaluation_of_a_token_does_not_depend_on_its_batch():
    """The capacity of a Switch layer holds in training alone."""
    model = make("Switch", capacity_factor=0.5).eval()
    tokens = ids(batch=8)
    torch.testing.assert_close(model(tokens)[:1], model(tokens[:1]))


def test_learns():
    model, tokens = make("hash"), ids(batch=2, length=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = gradients(model, tokens[:, :-1], tokens[:, 1:])
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded(name, tmp_path):
    pytest.importorskip("safetensors")
    counts = torch.arange(50)
    hashed = name in ("hash", "previous token")
    model = make(name, table=balanced_table(counts, 4, seed=2) if hashed else None)
    model.save(tmp_path)
    again = SparseTransformer.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.eval()(ids()), model.eval()(ids()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_matched_width_keeps_the_number_of_parameters():
    """The rule of Shazeer 2019 on a whole model: multi-query layers with wider feed-forward layers."""
    multi_head = make("dense", num_kv_heads=4)
    width = matched_d_ff(48, (4, 4, 8), (4, 1, 8), num_attention=3, num_feed_forward=3)
    assert make("dense", num_kv_heads=1, d_ff=width).num_parameters() == multi_head.num_parameters()


BAD_CONFIG = [
    pytest.param({"d_model": 0}, "d_model must be at least 1, got 0", id="width"),
    pytest.param({"num_heads": 5}, r"num_heads must be a divisor of d_model \(32\)", id="heads"),
    pytest.param({"num_kv_heads": 3}, "num_kv_heads must be a divisor of 4, got 3", id="shared heads"),
    pytest.param({"positions": "alibi"}, "positions must be one of rotary, learned, got 'alibi'", id="positions"),
    pytest.param({"activation": "tanh"}, "activation must be one of", id="activation"),
    pytest.param({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0", id="dropout"),
    pytest.param({"expert_layers": (3,)}, r"expert_layers must be different layers in \[0, 3\)", id="layer"),
    pytest.param({"expert_layers": (1, 1)}, "expert_layers must be different", id="layer twice"),
    pytest.param({"top_k": 17}, "top_k must be at most 16, got 17", id="top k"),
    pytest.param({"router": "top_k", "hash": "bigram"}, "hash must be token with router top_k", id="learned bigram"),
    pytest.param({"num_hashes": 5}, "num_hashes must be a divisor of 48, got 5", id="segments"),
    pytest.param({"num_hashes": 2, "top_k": 2}, "num_hashes must be 1 unless", id="segments of two experts"),
    pytest.param({"bos_id": 50}, r"bos_id must be in \[0, 50\), got 50", id="first token"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIG)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=f"SparseTransformerConfig: {message}"):
        SparseTransformerConfig(**{**SMALL, **changes})


def test_config_to_and_from_json():
    config = SparseTransformerConfig(**SMALL, **VARIANTS["Switch"])
    assert SparseTransformerConfig.from_json(config.to_json()) == config
    with pytest.raises(TypeError, match=r"d_ff must be an integer, got 4.5"):
        dataclasses.replace(config, d_ff=4.5)
    for text, message in [("{", "must be JSON"), ("[]", "must be a JSON object"), ("{}", "with a vocab_size"),
                          ('{"vocab_size": 3, "depth": 1}', r"of known fields, got \['depth'\]")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SparseTransformerConfig.from_json(text)


BAD_INPUT = [
    pytest.param(torch.zeros(2, 3), TypeError, "input_ids must be int32 or int64", id="type"),
    pytest.param(torch.zeros(3).long(), ValueError, r"input_ids must be \[B, T\], not empty", id="one dimension"),
    pytest.param(torch.zeros(2, 0).long(), ValueError, r"input_ids must be \[B, T\], not empty", id="empty"),
    pytest.param(torch.zeros(1, 25).long(), ValueError, "of at most 24 learned positions, got 25", id="long"),
]


@pytest.mark.parametrize(("tokens", "error", "message"), BAD_INPUT)
def test_bad_input(tokens, error, message):
    with pytest.raises(error, match=f"SparseTransformer: (input_ids must be )?{message}"):
        make("bigram")(tokens)


def test_bad_targets_and_tables():
    with pytest.raises(ValueError, match=r"targets must be of shape \(3, 10\), got \(3, 9\)"):
        make()(ids(), ids()[:, 1:])
    with pytest.raises(ValueError, match=r"table must be \[50, 1\], got \(49, 1\)"):
        make(table=torch.zeros(49, 1).int())
    with pytest.raises(ValueError, match=r"table must be in \[0, 4\), got \[4, 4\]"):
        make(table=torch.full((50, 1), 4).int())
    with pytest.raises(ValueError, match="table must be None without hash layers"):
        make("dense", table=torch.zeros(50, 1).int())
    with pytest.raises(ValueError, match="MoE: routing and plan must be given"):
        make().blocks[0].feed_forward(torch.zeros(3, 32))
