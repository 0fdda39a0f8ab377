"""Our attention inside transformers, against its own eager path: tiny random models that decode from its caches."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    DynamicCache,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
)

from gossamer.sparse_nn import transformers_attention

VOCAB = 60
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 16}
CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "falcon": lambda: FalconConfig(**SIZES, multi_query=True, alibi=False, new_decoder_architecture=False),
    "falcon_grouped": lambda: FalconConfig(**SIZES, alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": lambda: FalconConfig(**SIZES, multi_query=True, alibi=True, new_decoder_architecture=False),
    "gemma2": lambda: Gemma2Config(**GROUPED, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=9),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, sliding_window=6, query_pre_attn_scalar=16),
    "gpt_oss": lambda: GptOssConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
    "deepseek_v4": lambda: DeepseekV4Config(
        **SIZES, num_key_value_heads=1, head_dim=16, moe_intermediate_size=24, n_routed_experts=4, num_local_experts=4,
        num_experts_per_tok=2, mlp_layer_types=["moe", "moe"], sliding_window=8,
        layer_types=["sliding_attention", "compressed_sparse_attention"],
    ),
}  # fmt: skip
LENGTHS = [11, 4, 1]  # of the prompts; shorter ones are padded on the left
CASES = [pytest.param(name, dtype, id=f"{name}-{dtype}") for name in CONFIGS for dtype in (torch.float32,)]
CASES.append(pytest.param("llama", torch.bfloat16, id="llama-bfloat16"))


@pytest.fixture(scope="module", autouse=True)
def _register():
    transformers_attention.register()


@pytest.fixture
def decoded(monkeypatch):
    """Counts the layers that decode_attention served."""
    calls = []
    original = transformers_attention.decode_attention

    def counting(*arguments, **options):
        calls.append(arguments[0].shape)
        return original(*arguments, **options)

    monkeypatch.setattr(transformers_attention, "decode_attention", counting)
    return calls


def make_model(name, implementation, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=implementation)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().to(dtype)


def prompts(lengths=LENGTHS):
    ids = torch.randint(2, VOCAB, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


@torch.no_grad()
def decode_logits(model, ids, mask, steps=(1, 1, 1, 3, 1)):
    """Logits of a prompt and of the given steps over the cache, [B, sum(steps), vocab]."""
    cache, found = DynamicCache(config=model.config), []
    generator = torch.Generator().manual_seed(2)
    model(input_ids=ids, attention_mask=mask, past_key_values=cache)
    for count in steps:
        ids = torch.randint(2, VOCAB, (len(ids), count), generator=generator)
        mask = torch.cat([mask, mask.new_ones(len(ids), count)], 1)
        found.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("lengths", [LENGTHS, [9, 9]], ids=["padded", "equal"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_steps_over_the_cache_equal_eager(name, dtype, lengths, decoded):
    inputs = prompts(lengths)
    found = decode_logits(make_model(name, "gossamer", dtype), *inputs)
    assert bool(decoded) == (name != "falcon_alibi")
    wanted = decode_logits(make_model(name, "eager", dtype), *inputs)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "falcon", "gemma2", "gemma3", "deepseek_v4"])
def test_generated_tokens_equal_eager(name, cache, decoded):
    if (name, cache) == ("deepseek_v4", "static"):
        pytest.skip("transformers has no static cache for this model")
    ids, mask = prompts()
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    found = make_model(name, "gossamer").generate(ids, **options)
    assert decoded
    assert torch.equal(found, make_model(name, "eager").generate(ids, **options))


def test_beams_and_assisted_generation_equal_eager():
    ids, mask = prompts([6])
    model, eager = make_model("llama", "gossamer"), make_model("llama", "eager")
    for options in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        arguments = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False} | options
        assert torch.equal(model.generate(ids, **arguments), eager.generate(ids, **arguments))


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_training_and_prompts_run_through_eager(name, decoded):
    ids, mask = prompts([40, 30])
    losses = []
    for implementation in ("gossamer", "eager"):
        loss = make_model(name, implementation)(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert not decoded


def test_a_mask_that_weighs_positions_runs_through_eager(decoded):
    model = make_model("llama", "gossamer")
    layer = model.model.layers[0].self_attn
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 5, 16)
    bias = torch.tensor([0.0, -1.0, 0.5, 0.0, 0.0]).view(1, 1, 1, 5)
    with torch.no_grad():
        out, weights = transformers_attention.attention_forward(layer, q, k, k, bias, scaling=0.25, dropout=0.0)
    assert not decoded
    assert weights is not None
    assert out.shape == (1, 1, 4, 16)
