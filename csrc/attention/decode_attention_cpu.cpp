#include "attention/decode_args.h"
#define GOSSAMER_KERNEL "attention/decode_attention.h"
#define GOSSAMER_KERNEL_BF16
#include "common/foreach_isa.h"
#include "common/tensor.h"

namespace gossamer {
namespace {

constexpr double kShareNanoseconds = 20e3;  // a share below this costs more to start than it saves
constexpr double kBytesPerNanosecond = 20, kFlopsPerNanosecond = 150;

// The lengths and the block table are data, so they are checked here and not in Python.
void check_lengths(const DecodeArgs& args) {
  for (int64_t b = 0; b < args.batch; ++b) {
    const int64_t length = args.seq_lens[b];
    GOSSAMER_CHECK(length >= 0 && length <= args.max_len, "decode_attention: seq_lens must be in [0, ", args.max_len,
                   "], got ", length);
    if (args.block_table == nullptr) continue;
    for (int64_t i = 0; i * args.block_size < length; ++i) {
      const int64_t block = args.block_table[b * args.max_blocks + i];
      GOSSAMER_CHECK(block >= 0 && block < args.num_blocks, "decode_attention: block_table must be in [0, ",
                     args.num_blocks, "), got ", block);
    }
  }
}

// How many equal shares the leaves are cut into: as many as threads, as long as a share is worth a thread.
int64_t num_shares(const DecodeArgs& args, const LeafIndex& index, int64_t element_size) {
  const double keys = static_cast<double>(index.total() * args.num_kv_heads * kLeafKeys);
  const double dims = static_cast<double>(args.key_dim + args.value_dim);
  const double time = keys * dims * std::max(element_size / kBytesPerNanosecond, 2 * args.rows() / kFlopsPerNanosecond);
  const int64_t units = index.total() * args.num_kv_heads;
  return std::clamp<int64_t>(static_cast<int64_t>(time / kShareNanoseconds), 1,
                             std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(units, 1)));
}

// Finds the sequences that no share holds whole, and numbers their partials.
int64_t place_partials(const DecodeArgs& args, const LeafIndex& index, int64_t shares, PartialStore& store) {
  const int64_t heads = args.num_kv_heads, units = index.total() * heads;
  int64_t partials = 0;
  const auto share_of = [&](int64_t unit) { return ((unit + 1) * shares - 1) / units; };
  store.slot.assign(args.batch, -1);
  for (int64_t b = 0; b < args.batch; ++b) {
    const int64_t begin = index.offsets[b] * heads, end = index.offsets[b + 1] * heads;
    if (begin < end && share_of(begin) == share_of(end - 1)) continue;
    store.slot[b] = partials;
    partials += end - begin;
  }
  return partials;
}

void run(const DecodeArgs& args, const Tensor& lse) {
  const LeafIndex index(args);
  const int64_t shares = num_shares(args, index, size_of(args.cache_type));
  const int64_t units = index.total() * args.num_kv_heads;
  PartialStore store;
  Tensor memory = torch::stable::new_empty(lse, {place_partials(args, index, shares, store) * args.partial_size()});
  store.data = memory.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, units == 0 ? 0 : shares, 1, [&](int64_t begin, int64_t end) {
    GOSSAMER_DISPATCH_ISA_BF16(decode_attention, args, index, store, begin * units / shares, end * units / shares);
  });
  std::vector<int64_t> split;
  for (int64_t b = 0; b < args.batch; ++b) {
    if (store.slot[b] >= 0) split.push_back(b);
  }
  const int64_t folds = static_cast<int64_t>(split.size()) * args.num_kv_heads;
  torch::stable::parallel_for(0, folds, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = split[i / args.num_kv_heads], kv_head = i % args.num_kv_heads;
      GOSSAMER_DISPATCH_ISA_BF16(fold_partials, args, index, store, sequence, kv_head);
    }
  });
}

std::tuple<Tensor, Tensor> decode_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const OptionalTensor& seq_lens, const OptionalTensor& block_table,
                                                double scale, int64_t window, const OptionalTensor& sinks,
                                                double softcap, const OptionalTensor& alibi_slopes,
                                                const OptionalTensor& tree_mask, const OptionalTensor& k_scale,
                                                const OptionalTensor& v_scale) {
  auto [out, lse] = empty_results(q, k, v, k_scale);
  if (lse.numel() == 0) return {out, lse};
  DecodeArgs args = decode_args(q, k, v, seq_lens, block_table, scale, window, sinks, softcap, alibi_slopes, tree_mask,
                                k_scale, v_scale, out, lse);
  const std::vector<int64_t> full(args.batch, args.max_len);
  if (!seq_lens) args.seq_lens = full.data();
  check_lengths(args);
  run(args, lse);
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("decode_attention", TORCH_BOX(&decode_attention_cpu)); }

}  // namespace gossamer
