"""Our experts inside transformers, against its own eager path: tiny random models, forward and training."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV4Config, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from gossamer.sparse_nn import transformers_experts

VOCAB = 60
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "mixtral": lambda: MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=6),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, intermediate_size=48, moe_intermediate_size=24, num_experts=8),
    "deepseek_v4": lambda: deepseek_config(),
    "gpt_oss": lambda: GptOssConfig(**SIZES, intermediate_size=24, num_local_experts=6, head_dim=8),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def deepseek_config():
    sizes = SIZES | {"num_key_value_heads": 1}
    return DeepseekV4Config(
        **sizes, moe_intermediate_size=24, n_routed_experts=8, num_local_experts=8, swiglu_limit=0.02,
        mlp_layer_types=["hash_moe", "moe"],
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _register():
    transformers_experts.register()


def make_model(name, implementation, device="cpu"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), experts_implementation=implementation)
    for parameter_name, buffer in model.named_buffers():
        if parameter_name.endswith("tid2eid"):  # zeros where no checkpoint fills it
            ids = torch.stack([torch.randperm(8)[: buffer.shape[1]] for _ in range(len(buffer))])
            buffer.copy_(ids)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(device)


def run(model, steps=1):
    """Logits of the first step and losses and gradients of the last."""
    ids = torch.randint(VOCAB, (3, 17), generator=torch.Generator().manual_seed(1)).to(model.device)
    optimizer, losses, first = torch.optim.SGD(model.parameters(), lr=0.01), [], None
    for _ in range(steps):
        out = model(input_ids=ids, labels=ids)
        first = out.logits.detach() if first is None else first
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    return first, losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_training_equal_eager(name, device):
    logits, losses, gradients = run(make_model(name, "gossamer", device), steps=3)
    wanted_logits, wanted_losses, wanted_gradients = run(make_model(name, "eager", device), steps=3)
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-4, atol=1e-4)
    assert losses == pytest.approx(wanted_losses, rel=1e-4)
    assert gradients.keys() == wanted_gradients.keys()
    assert any("experts" in key for key in gradients)
    for key, gradient in gradients.items():
        scale = max(wanted_gradients[key].abs().max().item(), 1e-6)
        assert (gradient - wanted_gradients[key]).abs().max() <= 2e-3 * scale, key


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v4"])
def test_gated_silu_experts_take_the_fused_operator(name, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("one expert after the other")

    monkeypatch.setattr(transformers_experts, "_one_by_one", refuse)
    run(make_model(name, "gossamer"))


def test_gradient_checkpointing_and_autocast():
    model, wanted = make_model("mixtral", "gossamer"), run(make_model("mixtral", "gossamer"))[2]
    model.activation_checkpointing_enable()
    found = run(model.train())[2]
    assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model)[0].isfinite().all()


def test_routes_of_other_ranks_are_left_out():
    """transformers marks them with the number of experts."""
    model = make_model("mixtral", "gossamer")
    experts = model.model.layers[0].mlp.experts
    x, ids, gates = torch.randn(5, 32), torch.tensor([[0, 6], [6, 6], [1, 2], [6, 3], [4, 5]]), torch.rand(5, 2)
    experts._is_expert_parallel = True
    out = experts(x, ids, gates)
    experts._is_expert_parallel = False
    kept = ids < 6
    torch.testing.assert_close(out, experts(x, ids.clamp(max=5), gates * kept))
    assert torch.equal(out[1], torch.zeros(32))
