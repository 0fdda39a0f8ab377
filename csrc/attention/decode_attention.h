// out[row] = sum_j p[row, j] v[j],  p[row, j] = exp(s[row, j]) / (sum_j exp(s[row, j]) + exp(sink)),
// s[row, j] = softcap(scale <q[row], k[j]>) - slope * (position(row) - j) over the cache positions j that row sees.
// One sequence and one key/value head is one problem of num_queries * group rows, so each key and value is read once
// for all of them. Every leaf of kLeafKeys positions is a softmax of its own; fold() adds leaves in order of position.
//
// Several kv heads of a leaf make a pass: first all scores, while the values of the pass are fetched into the second
// cache in the order of addresses, in which memory is read fastest; then the softmaxes, then the products with the
// values, while the keys of the next pass are fetched. Few rows take the positions of all heads in turn and fetch a
// constant distance ahead of what they read. A leaf that several sequences share is read once: its passes
// run for all of them, one after the other, while its rows are in that cache.
#include "attention/decode_leaf.h"
//
#include "attention/decode_tiles.h"
//
#include "attention/decode_rows.h"
//
#include "attention/decode_partial.h"
//
#include "attention/decode_int8.h"
//
#include "attention/decode_query.h"
//
#include "attention/decode_softmax.h"
//
#include "attention/decode_pass.h"

// The share [begin, end) of the work: finishes the sequences that lie in it, stores the partials of the others.
template <typename Dot, int kMost = kLanes>
void decode_share(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t begin,
                  int64_t end) {
  const auto run = [&]<int kRows>() { Decoder<Dot, kRows>{args, index, store}.run(begin, end); };
  const int64_t rows = args.rows();
  if (rows == 1) return run.template operator()<1>();
  if (rows == 2) return run.template operator()<2>();
  if constexpr (kLanes > 4) {
    if (rows <= 4) return run.template operator()<4>();
  }
  if constexpr (kLanes > 8) {
    if (rows <= 8) return run.template operator()<8>();
  }
  if constexpr (kMost == kLanes) run.template operator()<kLanes>();
}

inline void decode_attention(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t begin,
                             int64_t end) {
#ifdef GOSSAMER_BF16_DOT
  const bool whole = args.key_dim % 64 == 0 && args.value_dim % 64 == 0;
  if (args.query_type == Element::kBFloat16 && args.cache_type == Element::kInt8 && whole) {
    return decode_share<Int8Dot>(args, index, store, begin, end);
  }
#endif
  if constexpr (kLanes == 8) {
    const bool few = args.rows() <= 4 && args.key_dim % kLanes == 0 && args.value_dim % 32 == 0;
    if (few && args.cache_type == Element::kInt8) {
      return decode_share<ConvertDot<int8_t>, 4>(args, index, store, begin, end);
    }
    if (few && args.cache_type == Element::kHalf) {
      return decode_share<ConvertDot<Half>, 4>(args, index, store, begin, end);
    }
  }
  if (takes_pairs(args)) return decode_share<Bf16Dot>(args, index, store, begin, end);
  decode_share<FloatDot>(args, index, store, begin, end);
}

// Folds the stored partials of one sequence and kv head, in the order of position.
inline void fold_partials(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t sequence,
                          int64_t kv_head) {
  std::vector<float> memory(index.num_leaves[sequence] == 0 ? args.partial_size() : 0);
  const auto leaf = [&](int64_t i) -> Partial {
    return {store.at(args, store.slot[sequence] + i * args.num_kv_heads + kv_head), args};
  };
  const Partial state = memory.empty() ? leaf(0) : Partial(memory.data(), args);
  if (!memory.empty()) clear(args, state);
  for (int64_t i = 1; i < index.num_leaves[sequence]; ++i) fold(args, state, leaf(i));
  finish(args, sequence, kv_head, state);
}
