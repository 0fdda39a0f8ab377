// What decode_attention computes on, in plain numbers: shared by the glue and by the loops of every instruction set.
#pragma once

#include <cstdint>

#include "common/random.h"  // GOSSAMER_HOST_DEVICE

namespace gossamer {

// The cache is cut at multiples of kLeafKeys positions, whatever the batch, the threads or the split: each leaf is one
// softmax of its own, and leaves are folded in the order of position. This fixes the bits of the result.
constexpr int64_t kLeafKeys = 256;

enum class Element { kFloat, kBFloat16, kHalf, kInt8, kE4M3, kE5M2 };

inline int64_t size_of(Element element) { return element == Element::kFloat ? 4 : element < Element::kInt8 ? 2 : 1; }

// Rows of one cache tensor, [sequence or block, position, head, dim] with any strides and dense dims.
struct CacheView {
  const char* data;
  int64_t stride[3];   // bytes: sequence or block, position, head
  const float* scale;  // per position and head of a cache of bytes, same strides in floats, or null
  int64_t scale_stride[3];
};

struct DecodeArgs {
  Element query_type, cache_type;
  const char* q;  // [batch, num_queries, num_kv_heads, group, key_dim], dense
  CacheView k, v;
  char* out;   // [batch, num_queries, num_kv_heads, group, value_dim], dense, type of q
  float* lse;  // [batch, num_queries, num_kv_heads, group]
  int64_t batch, num_queries, num_kv_heads, group, key_dim, value_dim;
  const int64_t* seq_lens;
  const int64_t* block_table;  // [batch, max_blocks] or null
  int64_t max_blocks, block_size;
  float scale, softcap;         // softcap 0 is none
  int64_t window;               // 0 is none
  const float* sinks;           // [num_heads] or null
  const float* slopes;          // [num_heads] or null
  const bool* tree_mask;        // [batch, num_queries, num_queries] or null
  int64_t tree_stride;          // 0 where all sequences share one mask
  bool values_are_keys;         // v is k: its rows are in cache when the values are read
  int64_t max_len, num_blocks;  // positions that a sequence has room for, blocks of a paged cache

  GOSSAMER_HOST_DEVICE int64_t rows() const { return num_queries * group; }
  // Sizes of a partial softmax, rounded up to whole vectors of every instruction set.
  GOSSAMER_HOST_DEVICE int64_t padded_rows() const { return (rows() + 15) / 16 * 16; }
  GOSSAMER_HOST_DEVICE int64_t padded_value_dim() const { return (value_dim + 31) / 32 * 32; }
  GOSSAMER_HOST_DEVICE int64_t partial_size() const { return padded_rows() * (2 + padded_value_dim()); }
  GOSSAMER_HOST_DEVICE int64_t head(int64_t row, int64_t kv_head) const { return kv_head * group + row % group; }
  // Flat index of (sequence, query, head) in q, out and lse, without the last dimension.
  GOSSAMER_HOST_DEVICE int64_t flat(int64_t sequence, int64_t row, int64_t kv_head) const {
    return ((sequence * num_queries + row / group) * num_kv_heads + kv_head) * group + row % group;
  }
  // Cache positions [first, last) that row sees, tree mask apart.
  GOSSAMER_HOST_DEVICE int64_t position(int64_t sequence, int64_t row) const {
    return seq_lens[sequence] - num_queries + row / group;
  }
  GOSSAMER_HOST_DEVICE int64_t first(int64_t sequence, int64_t row) const {
    const int64_t begin = position(sequence, row) - window + 1;
    return window == 0 || begin < 0 ? 0 : begin;
  }
  GOSSAMER_HOST_DEVICE int64_t last(int64_t sequence, int64_t row) const {
    const int64_t end = tree_mask ? seq_lens[sequence] : position(sequence, row) + 1;
    return end < 0 ? 0 : end;
  }
};

}  // namespace gossamer
