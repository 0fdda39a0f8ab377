#include "attention/decode_args.h"
#include "attention/decode_order.h"
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

// Where the line of leaves is cut into equal shares: as many as threads, as long as a share is worth a thread.
std::vector<int64_t> cut_shares(const DecodeArgs& args, const LeafIndex& index) {
  const double keys = static_cast<double>(index.cost() * kLeafKeys);
  const double dims = static_cast<double>(args.key_dim + args.value_dim);
  const double per_key =
      std::max(size_of(args.cache_type) / kBytesPerNanosecond, 2 * args.rows() / kFlopsPerNanosecond);
  const int64_t most = std::clamp<int64_t>(index.num_units(), 1, torch::stable::get_num_threads());
  const int64_t shares = std::clamp<int64_t>(static_cast<int64_t>(keys * dims * per_key / kShareNanoseconds), 1, most);
  std::vector<int64_t> cuts(shares + 1, 0);
  for (int64_t share = 1; index.num_units() > 0 && share <= shares; ++share) cuts[share] = index.cut(share, shares);
  return cuts;
}

// Finds the sequences that no share holds whole, and numbers their partials.
int64_t place_partials(const DecodeArgs& args, const LeafIndex& index, const std::vector<int64_t>& cuts,
                       PartialStore& store) {
  const int64_t heads = args.num_kv_heads;
  int64_t partials = 0;
  const auto share_of = [&](int64_t unit) { return std::upper_bound(cuts.begin(), cuts.end(), unit) - cuts.begin(); };
  store.slot.assign(args.batch, -1);
  for (int64_t b = 0; b < args.batch; ++b) {
    const int64_t begin = index.first_number[b] * heads, end = index.last_number[b] * heads;
    if (begin < end && share_of(begin) == share_of(end - 1)) continue;
    store.slot[b] = partials;
    partials += index.num_leaves[b] * heads;
  }
  return partials;
}

void run(const DecodeArgs& args, const Tensor& lse) {
  const LeafIndex index(args);
  const std::vector<int64_t> cuts = cut_shares(args, index);
  PartialStore store;
  Tensor memory = allocate(lse, {place_partials(args, index, cuts, store) * args.partial_size()});
  store.data = memory.mutable_data_ptr<float>();
  const int64_t shares = static_cast<int64_t>(cuts.size()) - 1;
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    GOSSAMER_DISPATCH_ISA_BF16(decode_attention, args, index, store, cuts[begin], cuts[end]);
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
