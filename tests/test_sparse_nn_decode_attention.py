"""Decoding over a cache: values, exactness across splits and layouts, and what is refused."""

import math
import os

import pytest
import torch
from torch.library import opcheck

from gossamer.sparse_nn import decode_attention, merge_attention

import reference

# Error of one output for values of size 1: rounding of the probabilities (bfloat16 words) and of the result.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16"]


def make(batch, num_queries, heads, kv_heads, key_dim, value_dim, length, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, num_queries, heads, key_dim),
        (batch, length, kv_heads, key_dim),
        (batch, length, kv_heads, value_dim),
    )
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def assert_matches(q, k, v, device="cpu", **options):
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    out, lse = (x.cpu() for x in decode_attention(*(x.to(device) for x in (q, k, v)), return_lse=True, **moved))
    expected, expected_lse = reference.decode_attention(q, k, v, **options)
    tolerance = TOLERANCE[q.dtype] * max(1.0, (q.shape[-1] / 128) ** 0.5)  # rounding grows with the length of a score
    assert out.dtype == q.dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)


SHAPES = [
    pytest.param(2, 1, 8, 8, 64, 64, 70, id="one head per key head"),
    pytest.param(1, 1, 6, 3, 48, 48, 40, id="group of 2, dimension within a vector pair"),
    pytest.param(2, 1, 8, 2, 128, 128, 300, id="group of 4 over two leaves"),
    pytest.param(1, 1, 7, 1, 64, 32, 33, id="group of 7"),
    pytest.param(1, 1, 32, 1, 128, 128, 520, id="multi-query, three leaves"),
    pytest.param(1, 1, 71, 1, 64, 64, 65, id="group of 71"),
    pytest.param(1, 1, 20, 1, 16, 16, 31, id="group of 20, small head"),
    pytest.param(1, 1, 16, 1, 576, 512, 40, id="latent cache 576 and 512"),
    pytest.param(2, 3, 12, 1, 20, 17, 50, id="odd dimensions, three queries"),
    pytest.param(1, 16, 2, 1, 32, 32, 20, id="sixteen queries, nearly the whole cache"),
    pytest.param(1, 4, 2, 1, 32, 32, 2, id="more queries than positions"),
    pytest.param(2, 1, 4, 1, 32, 32, 0, id="empty cache"),
    pytest.param(0, 1, 4, 1, 32, 32, 8, id="empty batch"),
]
OPTIONS = [
    pytest.param(lambda b, q, h, s: {}, id="plain"),
    pytest.param(lambda b, q, h, s: {"seq_lens": torch.arange(b) * s // max(b, 1)}, id="ragged with an empty one"),
    pytest.param(lambda b, q, h, s: {"window": 19}, id="window smaller than a split"),
    pytest.param(lambda b, q, h, s: {"sinks": torch.linspace(-3, 3, h), "scale": 0.3}, id="sinks"),
    pytest.param(lambda b, q, h, s: {"softcap": 2.0, "scale": 1.0}, id="softcap"),
    pytest.param(lambda b, q, h, s: {"alibi_slopes": torch.linspace(0.01, 1, h)}, id="alibi"),
    pytest.param(lambda b, q, h, s: {"tree_mask": torch.eye(q, dtype=torch.bool)[None]}, id="tree mask"),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("batch", "num_queries", "heads", "kv_heads", "key_dim", "value_dim", "length"), SHAPES)
def test_matches_reference(batch, num_queries, heads, kv_heads, key_dim, value_dim, length, options, dtype, device):
    q, k, v = make(batch, num_queries, heads, kv_heads, key_dim, value_dim, length, dtype)
    assert_matches(q, k, v, device, **options(batch, num_queries, heads, length))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 9, 12, 15, 16, 17, 24, 31, 33, 48, 64, 71, 100, 127, 128])
def test_any_group_matches_reference(group, dtype, device):
    assert_matches(*make(1, 1, 2 * group, 2, 48, 48, 261, dtype), device)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 576), (24, 8), (80, 17), (129, 256), (320, 96), (576, 512)])
def test_any_head_size_matches_reference(key_dim, value_dim, dtype, device):
    for heads, kv_heads in [(4, 2), (12, 1)]:
        assert_matches(*make(1, 2, heads, kv_heads, key_dim, value_dim, 70, dtype), device)


def test_tree_of_drafts_equals_its_paths():
    """Drafts 1 and 2 follow draft 0, and draft 3 follows 1: each sees what it would see alone in a cache."""
    q, k, v = make(1, 4, 8, 2, 64, 64, 300)
    paths = [[0], [0, 1], [0, 2], [0, 1, 3]]
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    for i, path in enumerate(paths):
        mask[0, i, path] = True
    out = decode_attention(q, k, v, tree_mask=mask)
    for i, path in enumerate(paths):
        rows = list(range(296)) + [296 + j for j in path]
        alone = decode_attention(q[:, i : i + 1], k[:, rows], v[:, rows])
        torch.testing.assert_close(out[:, i : i + 1], alone, rtol=1e-5, atol=1e-5)


def random_case(seed):
    """A random shape, dtype and set of options, small enough for the oracle."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def maybe(value):
        return pick(None, None, value)

    batch, num_queries, kv_heads = pick(1, 2), pick(1, 1, 2, 5), pick(1, 1, 2, 3)
    heads = kv_heads * pick(1, 2, 3, 4, 5, 8, 12, 17)
    length = pick(1, 7, 32, 100, 257, 300)
    q, k, v = make(batch, num_queries, heads, kv_heads, pick(16, 33, 64, 96), pick(16, 40, 64), length,
                   pick(*TOLERANCE), seed)  # fmt: skip
    options = {
        "seq_lens": maybe(torch.randint(length + 1, (batch,), generator=generator)),
        "window": maybe(pick(1, 5, 64)),
        "sinks": maybe(torch.randn(heads, generator=generator)),
        "softcap": maybe(pick(1.0, 30.0)),
        "alibi_slopes": maybe(torch.rand(heads, generator=generator)),
        "tree_mask": maybe(torch.rand(batch, num_queries, num_queries, generator=generator) < 0.6),
    }
    return q, k, v, {name: value for name, value in options.items() if value is not None}


RANDOM_CASES = int(os.environ.get("GOSSAMER_RANDOM_CASES", "300"))  # 5000 before a release: four minutes


@pytest.mark.parametrize("first", range(0, RANDOM_CASES, 50))
def test_random_cases_match_reference(first):
    for seed in range(first, first + 50):
        q, k, v, options = random_case(seed)
        assert_matches(q, k, v, **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_instruction_set_gives_the_reference(isa, dtype, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    for heads, kv_heads in [(1, 1), (2, 1), (4, 1), (12, 2), (40, 1)]:
        assert_matches(*make(1, 1, heads, kv_heads, 64, 64, 290, dtype), softcap=5.0)


def paged(cache, block_size, generator):
    """The same cache in shuffled blocks, and its table."""
    batch, length = cache.shape[:2]
    max_blocks = -(-length // block_size)
    order = torch.randperm(batch * max_blocks + 3, generator=generator)[: batch * max_blocks]
    blocks = torch.full((batch * max_blocks + 3, block_size, *cache.shape[2:]), torch.nan).to(cache.dtype)
    padded = torch.nn.functional.pad(cache, (0, 0, 0, 0, 0, max_blocks * block_size - length))
    blocks[order] = padded.reshape(batch * max_blocks, block_size, *cache.shape[2:])
    return blocks, order.view(batch, max_blocks)


@pytest.mark.parametrize("block_size", [1, 16, 100])
def test_paged_equals_contiguous_to_the_bit(block_size):
    q, k, v = make(2, 2, 8, 2, 64, 64, 300, torch.bfloat16)
    seq_lens = torch.tensor([300, 77])
    blocks, table = paged(torch.cat([k, v], 3), block_size, torch.Generator().manual_seed(1))
    out = decode_attention(q, blocks[..., :64], blocks[..., 64:], seq_lens=seq_lens, block_table=table)
    assert torch.equal(out, decode_attention(q, k, v, seq_lens=seq_lens))


def test_any_strides_are_read_in_place():
    q, k, v = make(2, 1, 8, 2, 64, 64, 50)
    k_t, v_t = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    assert torch.equal(decode_attention(q, k_t, v_t), decode_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [4, 32])
def test_equal_bits_for_any_batch_and_threads(heads, dtype):
    lengths = torch.tensor([5000, 0, 3, 1200, 257])
    q, k, v = make(5, 2, heads, 1, 64, 64, 5000, dtype)
    results = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results[threads] = decode_attention(q, k, v, seq_lens=lengths)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[1], other) for other in results.values())
    for b, length in enumerate(lengths.tolist()):
        alone = decode_attention(q[b : b + 1], k[b : b + 1, :length], v[b : b + 1, :length])
        assert torch.equal(alone[0], results[1][b])


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (8, 8), (144, 9)])
@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "int8"])
def test_equal_bits_however_kv_heads_are_shared_out(heads, kv_heads, quantised):
    """Kv heads are computed together or apart, as the shares of the threads fall: the bits do not show it."""
    q, k, v = make(2, 1, heads, kv_heads, 64, 64, 1300, torch.bfloat16)
    seq_lens, options = torch.tensor([1300, 700]), {}
    if quantised:
        scales = [x.abs().amax(-1).float() / 127 for x in (k, v)]
        k, v = ((x / s[..., None]).round().to(torch.int8) for x, s in zip((k, v), scales))
        options = {"k_scale": scales[0], "v_scale": scales[1]}
    results, before = {}, torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results[threads] = decode_attention(q, k, v, seq_lens=seq_lens, **options)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[1], other) for other in results.values())
    for h in range(kv_heads):
        own, group = slice(h, h + 1), slice(h * heads // kv_heads, (h + 1) * heads // kv_heads)
        chosen = {name: scale[:, :, own] for name, scale in options.items()}
        alone = decode_attention(q[:, :, group], k[:, :, own], v[:, :, own], seq_lens=seq_lens, **chosen)
        assert torch.equal(alone, results[1][:, :, group])


def test_int8_values_may_have_negative_and_undefined_scales():
    q, k, v = make(1, 1, 8, 2, 64, 64, 300, torch.bfloat16)
    ints = [(x.float() * 30).round().clamp(-128, 127).to(torch.int8) for x in (k, v)]
    scale = torch.linspace(-0.03, 0.05, 600).view(1, 300, 2)
    out = decode_attention(q, *ints, k_scale=scale, v_scale=scale)
    expected, _ = reference.decode_attention(q, *(x.double() * scale[..., None].double() for x in ints))
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    broken = scale.clone()
    broken[0, 5, 0] = torch.nan
    assert decode_attention(q, *ints, k_scale=broken, v_scale=scale)[:, :, :4].isnan().all()
    assert decode_attention(q, *ints, k_scale=scale, v_scale=broken)[:, :, :4].isnan().all()


def test_merge_of_parts_is_the_whole():
    q, k, v = make(2, 1, 8, 2, 64, 32, 700)
    whole, lse = decode_attention(q, k, v, return_lse=True)
    parts = [decode_attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in [(0, 90), (90, 90), (90, 700)]]
    outs, lses = zip(*parts)
    torch.testing.assert_close(merge_attention(outs, lses), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(lses).logsumexp(0), lse, rtol=1e-5, atol=1e-5)


def test_values_may_be_the_keys():
    q, k, _ = make(1, 1, 64, 1, 512, 512, 300, torch.bfloat16)
    assert torch.equal(decode_attention(q, k, k), decode_attention(q, k, k.clone()))
    assert_matches(q, k, k, window=128, sinks=torch.randn(64))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [2, 8, 40])
def test_int8_cache_is_exact_up_to_its_rounding(heads, dtype):
    """The operator adds nothing to the error of the cache: it gives attention over k_int8 * k_scale."""
    q, k, v = make(2, 1, heads, 2, 64, 64, 300)
    q = q.to(dtype)
    scales = [x.abs().amax(-1) / 127 for x in (k, v)]
    ints = [(x / s[..., None]).round().to(torch.int8) for x, s in zip((k, v), scales)]
    out = decode_attention(q, *ints, k_scale=scales[0], v_scale=scales[1])
    expected, _ = reference.decode_attention(q, *(x.double() * s[..., None].double() for x, s in zip(ints, scales)))
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    # The bound of the cache itself: scores move by |q|_1 s_k / 2, so weights by exp(2 that), values by s_v / 2.
    exact, _ = reference.decode_attention(q, k, v)
    moved = (q.double().abs().sum(-1).amax() * 64**-0.5 * scales[0].amax() / 2).item()
    bound = (math.exp(2 * moved) - 1) * v.abs().max().item() + scales[1].amax().item() / 2
    assert (expected - exact).abs().max() <= bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_caches_are_read_exactly(cache_dtype, dtype, isa, monkeypatch):
    """Attention over k_float8 * k_scale, subnormal numbers and dimensions within a vector included."""
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    for heads, dim in [(2, 64), (8, 20), (40, 64)]:
        q, k, v = make(2, 1, heads, 2, dim, dim, 300)
        q, small = q.to(dtype), torch.finfo(cache_dtype).smallest_normal
        scales = [x.abs().amax(-1) / 100 * torch.where(torch.arange(300) < 9, 50 / small, 1.0)[:, None] for x in (k, v)]
        bytes_ = [(x / s[..., None]).to(cache_dtype) for x, s in zip((k, v), scales)]
        out = decode_attention(q, *bytes_, k_scale=scales[0], v_scale=scales[1])
        wide = [x.double() * s[..., None].double() for x, s in zip(bytes_, scales)]
        expected, _ = reference.decode_attention(q, *wide)
        torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_byte_of_a_float8_cache_is_its_number(cache_dtype, device):
    v = torch.arange(256, dtype=torch.uint8).view(cache_dtype).view(1, 1, 1, 256).to(device)
    k, one = torch.zeros_like(v), torch.ones(1, 1, 1, device=device)
    out = decode_attention(torch.ones(1, 1, 1, 256, device=device), k, v, k_scale=one, v_scale=one)
    number = v.float()
    finite = number.isfinite()
    assert torch.equal(out.isfinite(), finite)
    assert torch.equal(out[finite], number[finite])


def test_equal_heads_give_multi_head_attention():
    q, k, v = make(2, 1, 8, 1, 32, 32, 90)
    assert_same = torch.testing.assert_close
    tied = decode_attention(q, k.expand(2, 90, 8, 32), v.expand(2, 90, 8, 32))
    assert_same(decode_attention(q, k, v), tied, rtol=1e-5, atol=1e-6)


def test_steps_equal_causal_attention():
    q, k, v = make(1, 12, 4, 1, 32, 32, 12)
    batched = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    steps = [decode_attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1]) for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), batched.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_attention(q, k, v), batched.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_one_giant_score_takes_all():
    q, k, v = make(1, 1, 4, 1, 32, 32, 600)
    k[0, 444] = q[0, 0].mean(0) * 1e18
    out = decode_attention(q, k, v)
    assert torch.isfinite(out).all()
    expected, _ = reference.decode_attention(q, k, v)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_infinite_and_undefined_scores():
    q, k, v = make(1, 1, 4, 1, 32, 32, 40)
    hidden = k.clone()
    hidden[0, 10:] = 0
    hidden[0, 10:, 0, 0] = -torch.inf
    positive = q.clone()
    positive[..., 0] = 1.0
    out, lse = decode_attention(positive, hidden, v, return_lse=True)
    short = decode_attention(positive, hidden[:, :10], v[:, :10])
    torch.testing.assert_close(out, short, rtol=1e-5, atol=1e-6)
    nothing, lse = decode_attention(positive, hidden[:, 10:], v[:, 10:], return_lse=True)
    assert (nothing == 0).all()
    assert (lse == -torch.inf).all()
    k[0, 5] = torch.nan
    assert decode_attention(q, k, v).isnan().all()


def test_rows_past_the_length_are_never_read():
    q, k, v = make(1, 1, 8, 2, 64, 64, 300)
    k[:, 123:], v[:, 123:] = torch.nan, torch.nan
    assert torch.isfinite(decode_attention(q, k, v, seq_lens=torch.tensor([123]))).all()


def test_opcheck_and_compile():
    q, k, v = make(2, 1, 8, 2, 32, 32, 40)
    arguments = (q, k, v, torch.tensor([40, 3]), None, 0.2, 8, torch.zeros(8), 1.0, None, None, None, None)
    opcheck(torch.ops.gossamer.decode_attention.default, arguments)
    compiled = torch.compile(
        lambda q, k, v: decode_attention(q * 2, k, v, window=7), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, k, v), decode_attention(q * 2, k, v, window=7))


Q, K, V = make(2, 1, 8, 2, 32, 32, 40)
WRONG = [
    (lambda: decode_attention(Q.double(), K, V), TypeError, "q must be float32"),
    (lambda: decode_attention(Q, K.half(), V.half()), TypeError, "k must be torch.float32, int8 or float8"),
    (lambda: decode_attention([1], K, V), TypeError, "q must be a tensor"),
    (lambda: decode_attention(Q[0], K, V), ValueError, "q must be of 4 dimensions"),
    (lambda: decode_attention(Q[:, :, :7], K, V), ValueError, "k must be of a number of heads that divides 7"),
    (lambda: decode_attention(Q, K[:1], V[:1]), ValueError, "k must be of batch size 2"),
    (lambda: decode_attention(Q, K, V[:, :3]), ValueError, r"v must be \[2, 40, 2, Dv\]"),
    (lambda: decode_attention(Q, K[..., :8], V), ValueError, "like q"),
    (lambda: decode_attention(Q, K, V, window=0), ValueError, "window must be positive"),
    (lambda: decode_attention(Q, K, V, softcap=-1.0), ValueError, "softcap must be positive"),
    (lambda: decode_attention(Q, K, V, sinks=torch.zeros(3)), ValueError, "sinks must be of shape"),
    (lambda: decode_attention(Q, K, V, seq_lens=torch.zeros(2)), TypeError, "must be int32 or int64"),
    (lambda: decode_attention(Q, K, V, seq_lens=torch.tensor([1, 41])), ValueError, r"in \[0, 40\], got 41"),
    (lambda: decode_attention(Q, K, V, seq_lens=torch.tensor([-1, 4])), ValueError, "got -1"),
    (lambda: decode_attention(Q, K, V, block_table=torch.tensor([[0], [2]])), ValueError, r"in \[0, 2\), got 2"),
    (lambda: decode_attention(Q, K, V, block_table=torch.tensor([[0], [-1]])), ValueError, "got -1"),
    (lambda: decode_attention(Q, K, V, tree_mask=torch.ones(2, 2, 2)), ValueError, "tree_mask must be bool"),
    (lambda: decode_attention(Q, K, V, k_scale=torch.ones(2, 40, 2)), ValueError, "k_scale must be given for int8"),
    (lambda: decode_attention(Q, K.char(), V.char()), ValueError, "k_scale must be given for int8"),
    (lambda: decode_attention(Q.clone().requires_grad_(), K, V), ValueError, "without gradient"),
    (lambda: decode_attention(Q, K, None), TypeError, "v must be a tensor, got NoneType"),
    (lambda: decode_attention(Q, K, V, seq_lens=[1, 2]), TypeError, "seq_lens must be a tensor or None, got list"),
    (lambda: merge_attention([], []), ValueError, "lses must be"),
    (lambda: merge_attention([Q], [Q[..., 0].to("meta")]), ValueError, "lses must be on cpu"),
    (lambda: merge_attention([Q, Q[:1]], [Q[..., 0]] * 2), ValueError, "outs must be of shape"),
    (lambda: merge_attention([Q], [Q[..., 0] > 0]), ValueError, "lses must be of a floating type"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


OTHER = {
    "k": K, "v": V, "seq_lens": torch.tensor([40, 12]), "block_table": torch.tensor([[0], [1]]), "sinks": torch.ones(8),
    "alibi_slopes": torch.ones(8), "tree_mask": torch.ones(1, 1, 1, dtype=torch.bool),
    "k_scale": torch.ones(2, 40, 2), "v_scale": torch.ones(2, 40, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_every_argument_is_on_the_device_of_q(name):
    with pytest.raises(ValueError, match=f"decode_attention: {name} must be on cpu like the others, got meta"):
        decode_attention(**{"q": Q, "k": K, "v": V, name: OTHER[name].to("meta")})


def test_block_ids_past_the_length_do_not_matter():
    table = torch.tensor([[0, -7], [1, 99]])
    out = decode_attention(Q, K, V, block_table=table, seq_lens=torch.tensor([40, 12]))
    assert torch.equal(out, decode_attention(Q, K, V, seq_lens=torch.tensor([40, 12])))
