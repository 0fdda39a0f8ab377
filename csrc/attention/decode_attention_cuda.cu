#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "attention/decode_args.h"
#include "common/cuda.cuh"

namespace gossamer {
namespace {

// Same meaning and the same leaves as the CPU loop in decode_attention.h. One block owns one leaf, one key/value head
// and a stripe of kRows query rows, kSlots of them per warp; keys and values pass through shared memory kTile at a
// time, so they are read once for all rows of the block. A leaf that several sequences have at the same addresses is
// the work of the block of the first of them, for the rows of all, kRows at a time: the memory gives it once, the
// caches again. A second kernel folds the leaves of a row in the order of position: no atomics, and equal bits for any
// batch.
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 8;
constexpr int kSlots = 4;
constexpr int kRows = kSlots * kWarps;

__device__ float load_element(const char* row, int64_t d, Element type) {
  switch (type) {
    case Element::kFloat: return reinterpret_cast<const float*>(row)[d];
    case Element::kBFloat16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[d]);
    case Element::kHalf: return __half2float(reinterpret_cast<const __half*>(row)[d]);
    case Element::kE4M3: return static_cast<float>(reinterpret_cast<const __nv_fp8_e4m3*>(row)[d]);
    case Element::kE5M2: return static_cast<float>(reinterpret_cast<const __nv_fp8_e5m2*>(row)[d]);
    default: return reinterpret_cast<const signed char*>(row)[d];
  }
}

__device__ void store_element(char* row, int64_t d, Element type, float value) {
  switch (type) {
    case Element::kFloat: reinterpret_cast<float*>(row)[d] = value; break;
    case Element::kBFloat16: reinterpret_cast<__nv_bfloat16*>(row)[d] = __float2bfloat16(value); break;
    default: reinterpret_cast<__half*>(row)[d] = __float2half(value);
  }
}

__device__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
  return x;
}

// Copies one row of a cache to shared memory as floats; a block id out of range gives NaN instead of a fault.
__device__ void fetch_row(const DecodeArgs& args, const CacheView& cache, int64_t size, int64_t sequence,
                          int64_t position, int64_t kv_head, float* out) {
  int64_t outer = sequence;
  if (args.block_table) {
    outer = args.block_table[sequence * args.max_blocks + position / args.block_size];
    position %= args.block_size;
  }
  const bool valid = outer >= 0 && (!args.block_table || outer < args.num_blocks);
  const int64_t index[] = {valid ? outer : 0, position, kv_head};
  int64_t offset = 0, scale_offset = 0;
  for (int i = 0; i < 3; ++i) {
    offset += index[i] * cache.stride[i];
    scale_offset += index[i] * cache.scale_stride[i];
  }
  const float scale = !valid ? nanf("") : cache.scale ? cache.scale[scale_offset] : 1.0f;
  for (int64_t d = threadIdx.x % 32; d < size; d += 32) {
    out[d] = valid ? scale * load_element(cache.data + offset, d, args.cache_type) : scale;
  }
}

__device__ bool valid_length(const DecodeArgs& args, int64_t sequence) {
  return args.seq_lens[sequence] >= 0 && args.seq_lens[sequence] <= args.max_len;
}

// Score of one row against one key position in bits, -inf where the row does not see it.
__device__ float score(const DecodeArgs& args, float dot, int64_t sequence, int64_t row, int64_t kv_head, int64_t key) {
  if (key < args.first(sequence, row) || key >= args.last(sequence, row)) return -INFINITY;
  const int64_t draft = key - (args.seq_lens[sequence] - args.num_queries);
  if (args.tree_mask && draft >= 0) {
    const bool* seen = args.tree_mask + sequence * args.tree_stride + row / args.group * args.num_queries;
    if (!seen[draft]) return -INFINITY;
  }
  float s = dot * args.scale;
  if (args.softcap != 0) s = args.softcap * tanhf(s / args.softcap);
  if (args.slopes) s -= args.slopes[args.head(row, kv_head)] * static_cast<float>(args.position(sequence, row) - key);
  return s * 1.44269504088896341f;
}

// True where every position of the leaf is seen by some row of the sequence.
__device__ bool sees_whole(const DecodeArgs& args, int64_t sequence, int64_t leaf) {
  return valid_length(args, sequence) && args.first(sequence, 0) <= leaf * kLeafKeys &&
         args.last(sequence, args.rows() - 1) >= (leaf + 1) * kLeafKeys;
}

// True where two sequences have a whole leaf at the same addresses.
__device__ bool shares_leaf(const DecodeArgs& args, int64_t a, int64_t b, int64_t leaf) {
  if (!sees_whole(args, a, leaf) || !sees_whole(args, b, leaf)) return false;
  if (args.block_table == nullptr) return true;
  const int64_t* row_a = args.block_table + a * args.max_blocks;
  const int64_t* row_b = args.block_table + b * args.max_blocks;
  for (int64_t i = leaf * kLeafKeys / args.block_size; i * args.block_size < (leaf + 1) * kLeafKeys; ++i) {
    if (row_a[i] != row_b[i]) return false;
  }
  return true;
}

// One thread per (leaf, sequence): before[] and next[] chain the sequences that share a leaf, -1 at the ends. Equality
// is transitive, so the nearest one on each side is enough.
__global__ void share_kernel(DecodeArgs args, int* before, int* next, int64_t num_leaves) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_leaves * args.batch;
       i += stride) {
    const int64_t leaf = i / args.batch, sequence = i % args.batch;
    int64_t a = sequence - 1, b = sequence + 1;
    while (a >= 0 && !shares_leaf(args, a, sequence, leaf)) --a;
    while (b < args.batch && !shares_leaf(args, sequence, b, leaf)) ++b;
    before[i] = static_cast<int>(a);
    next[i] = b < args.batch ? static_cast<int>(b) : -1;
  }
}

// The running softmax of one row, its values spread over the lanes of a warp.
template <int kPerLane>
struct RowState {
  float top = -INFINITY, sum = 0, out[kPerLane] = {};

  __device__ void add(float s, const float* value, int64_t value_dim, int lane) {
    const float new_top = s > top ? s : top, factor = exp2f(top - new_top), p = exp2f(s - new_top);
    top = new_top;
    sum = factor * sum + p;
    for (int i = 0; i < kPerLane; ++i) {
      const int64_t d = lane + 32 * i;
      if (d < value_dim) out[i] = factor * out[i] + p * value[d];
    }
  }

  __device__ void store(const DecodeArgs& args, int64_t row, int lane, float* partial) const {
    if (lane == 0) {
      partial[row] = top;
      partial[args.padded_rows() + row] = sum;
    }
    for (int i = 0; i < kPerLane; ++i) {
      const int64_t d = lane + 32 * i;
      if (d < args.value_dim) partial[2 * args.padded_rows() + row * args.padded_value_dim() + d] = out[i];
    }
  }
};

// Up to kRows rows of the sequences that share a leaf, from the stripe of rows that this block owns.
struct RowList {
  int sequence[kRows];  // -1 past the end
  int row[kRows];
};

// Fills the list from (sequence, row) on and moves them behind it; sequence is -1 at the end.
__device__ void fill_rows(const int* next, int64_t first_row, int64_t last_row, int64_t& sequence, int64_t& row,
                          RowList& list) {
  for (int i = 0; i < kRows; ++i) {
    list.sequence[i] = static_cast<int>(sequence);
    list.row[i] = static_cast<int>(row);
    if (sequence < 0 || ++row < last_row) continue;
    row = first_row;
    sequence = next ? next[sequence] : -1;
  }
}

// The rows of the list against the positions [begin, end) of the leaf. kPerLane values per lane cover value_dim.
template <int kPerLane>
__device__ void attend_rows(const DecodeArgs& args, const RowList& list, int64_t owner, int64_t kv_head, int64_t begin,
                            int64_t end, float* shared, RowState<kPerLane> (&state)[kSlots]) {
  float* query = shared;                        // [kRows][key_dim]
  float* keys = query + kRows * args.key_dim;   // [kTile][key_dim]
  float* values = keys + kTile * args.key_dim;  // [kTile][value_dim]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int slot = 0; slot < kSlots; ++slot) {
    const int i = slot * kWarps + warp;
    if (list.sequence[i] < 0) continue;
    const int64_t offset = args.flat(list.sequence[i], list.row[i], kv_head) * args.key_dim;
    for (int64_t d = lane; d < args.key_dim; d += 32) {
      query[i * args.key_dim + d] = load_element(args.q, offset + d, args.query_type);
    }
  }
  for (int64_t tile = begin; tile < end; tile += kTile) {
    __syncthreads();
    if (tile + warp < end) {  // kTile rows, one per warp
      fetch_row(args, args.k, args.key_dim, owner, tile + warp, kv_head, keys + warp * args.key_dim);
      fetch_row(args, args.v, args.value_dim, owner, tile + warp, kv_head, values + warp * args.value_dim);
    }
    __syncthreads();
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int i = slot * kWarps + warp;
      if (list.sequence[i] < 0) continue;
      for (int t = 0; t < kTile && tile + t < end; ++t) {
        float dot = 0;
        for (int64_t d = lane; d < args.key_dim; d += 32)
          dot += query[i * args.key_dim + d] * keys[t * args.key_dim + d];
        const float s = score(args, warp_sum(dot), list.sequence[i], list.row[i], kv_head, tile + t);
        if (s != -INFINITY) state[slot].add(s, values + t * args.value_dim, args.value_dim, lane);
      }
    }
  }
}

template <int kPerLane>
__global__ void leaf_kernel(DecodeArgs args, const int* before, const int* next, float* partials, int64_t num_leaves) {
  extern __shared__ float shared[];
  __shared__ RowList list;
  const int64_t pair = blockIdx.x / num_leaves, leaf = blockIdx.x % num_leaves;
  const int64_t owner = pair / args.num_kv_heads, kv_head = pair % args.num_kv_heads;
  if (!valid_length(args, owner)) return;
  const int64_t first = args.first(owner, 0), last = args.last(owner, args.rows() - 1);
  const int64_t begin = leaf * kLeafKeys > first ? leaf * kLeafKeys : first;
  const int64_t end = (leaf + 1) * kLeafKeys < last ? (leaf + 1) * kLeafKeys : last;
  if (begin >= end || (before && before[leaf * args.batch + owner] >= 0)) return;

  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t last_row = first_row + kRows < args.rows() ? first_row + kRows : args.rows();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t sequence = owner, row = first_row;  // of the first thread: where the next list begins
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0)
      fill_rows(next ? next + leaf * args.batch : nullptr, first_row, last_row, sequence, row, list);
    __syncthreads();
    if (list.sequence[0] < 0) return;
    RowState<kPerLane> state[kSlots];
    attend_rows<kPerLane>(args, list, owner, kv_head, begin, end, shared, state);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int i = slot * kWarps + warp;
      if (list.sequence[i] < 0) continue;
      const int64_t target = (list.sequence[i] * args.num_kv_heads + kv_head) * num_leaves + leaf;
      state[slot].store(args, list.row[i], lane, partials + target * args.partial_size());
    }
  }
}

// One warp per (sequence, row, kv head): adds its leaves in the order of position, then the sink.
template <int kPerLane>
__global__ void fold_kernel(DecodeArgs args, const float* partials, int64_t num_leaves) {
  const int lane = threadIdx.x % 32;
  const int64_t per_sequence = args.rows() * args.num_kv_heads, total = args.batch * per_sequence;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; i < total; i += stride) {
    const int64_t sequence = i / per_sequence, kv_head = i % args.num_kv_heads;
    const int64_t row = i % per_sequence / args.num_kv_heads, flat = args.flat(sequence, row, kv_head);
    const bool valid = valid_length(args, sequence);
    const int64_t first = args.first(sequence, 0), last = args.last(sequence, args.rows() - 1);
    float top = args.sinks ? args.sinks[args.head(row, kv_head)] * 1.44269504088896341f : -INFINITY;
    float sum = args.sinks ? 1 : 0, out[kPerLane] = {};
    for (int64_t leaf = first / kLeafKeys; valid && leaf * kLeafKeys < last; ++leaf) {
      const float* partial =
          partials + ((sequence * args.num_kv_heads + kv_head) * num_leaves + leaf) * args.partial_size();
      const float leaf_top = partial[row], leaf_sum = partial[args.padded_rows() + row];
      if (leaf_top == -INFINITY && leaf_sum == 0) continue;
      const float new_top = leaf_top > top ? leaf_top : top;
      const float f = exp2f(top - new_top), g = exp2f(leaf_top - new_top);
      top = new_top;
      sum = f * sum + g * leaf_sum;
      for (int n = 0; n < kPerLane; ++n) {
        const int64_t d = lane + 32 * n;
        if (d < args.value_dim) {
          out[n] = f * out[n] + g * partial[2 * args.padded_rows() + row * args.padded_value_dim() + d];
        }
      }
    }
    const float inverse = !valid ? nanf("") : sum == 0 ? 0.0f : 1 / sum;
    for (int n = 0; n < kPerLane; ++n) {
      const int64_t d = lane + 32 * n;
      if (d < args.value_dim) store_element(args.out, flat * args.value_dim + d, args.query_type, inverse * out[n]);
    }
    if (lane == 0) args.lse[flat] = valid ? (top + log2f(sum)) / 1.44269504088896341f : nanf("");
  }
}

// True where sequences may have rows at the same addresses.
bool may_share(const DecodeArgs& args) {
  return args.batch > 1 && (args.block_table || (args.k.stride[0] == 0 && args.v.stride[0] == 0 &&
                                                 args.k.scale_stride[0] == 0 && args.v.scale_stride[0] == 0));
}

template <int kPerLane>
void launch(const DecodeArgs& args, const Tensor& q) {
  const int64_t num_leaves = std::max<int64_t>(1, (args.max_len + kLeafKeys - 1) / kLeafKeys);
  const int64_t pairs = args.batch * args.num_kv_heads;
  Tensor partials = allocate(q, {pairs * num_leaves * args.partial_size()}, ScalarType::Float);
  Tensor chains = allocate(q, {2, may_share(args) ? num_leaves * args.batch : 0}, ScalarType::Int);
  const int64_t bytes = sizeof(float) * ((kRows + kTile) * args.key_dim + kTile * args.value_dim);
  GOSSAMER_CHECK(pairs * num_leaves < (int64_t{1} << 31), "decode_attention: k must have fewer than 2^31 leaves");
  int *before = nullptr, *next = nullptr;
  if (may_share(args)) {
    before = chains.mutable_data_ptr<int>();
    next = before + num_leaves * args.batch;
    share_kernel<<<num_blocks(num_leaves * args.batch, kThreads), kThreads, 0, current_stream(q)>>>(args, before, next,
                                                                                                    num_leaves);
    check_launch("decode_attention");
  }
  const dim3 grid(static_cast<unsigned>(pairs * num_leaves), static_cast<unsigned>((args.rows() + kRows - 1) / kRows));
  cudaFuncSetAttribute(leaf_kernel<kPerLane>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  leaf_kernel<kPerLane><<<grid, kThreads, bytes, current_stream(q)>>>(args, before, next,
                                                                      partials.mutable_data_ptr<float>(), num_leaves);
  check_launch("decode_attention");
  fold_kernel<kPerLane><<<num_blocks(pairs * args.rows(), kWarps), kThreads, 0, current_stream(q)>>>(
      args, partials.const_data_ptr<float>(), num_leaves);
  check_launch("decode_attention");
}

std::tuple<Tensor, Tensor> decode_attention_cuda(const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const OptionalTensor& seq_lens, const OptionalTensor& block_table,
                                                 double scale, int64_t window, const OptionalTensor& sinks,
                                                 double softcap, const OptionalTensor& alibi_slopes,
                                                 const OptionalTensor& tree_mask, const OptionalTensor& k_scale,
                                                 const OptionalTensor& v_scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  auto [out, lse] = empty_results(q, k, v, k_scale);
  if (lse.numel() == 0) return {out, lse};
  GOSSAMER_CHECK(seq_lens.has_value(), "decode_attention: seq_lens must be given on CUDA");
  GOSSAMER_CHECK(q.size(3) <= 640 && v.size(3) <= 640,
                 "decode_attention: q must have head dimensions up to 640 on CUDA");
  const DecodeArgs args = decode_args(q, k, v, seq_lens, block_table, scale, window, sinks, softcap, alibi_slopes,
                                      tree_mask, k_scale, v_scale, out, lse);
  if (args.value_dim <= 128) {
    launch<4>(args, q);
  } else if (args.value_dim <= 256) {
    launch<8>(args, q);
  } else {
    launch<20>(args, q);
  }
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("decode_attention", TORCH_BOX(&decode_attention_cuda)); }

}  // namespace gossamer
