#include "common/cuda.cuh"
#include "rewiring/search.h"

#include <tuple>

namespace gossamer {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1 << 16;

// Same meaning as the CPU loop in k_hop.h, for batches of small graphs: one thread block owns a diagonal block of the
// graph and runs all its levels; one thread owns a node at a time, so that no two write to the same row.
//   counts [max_hops, num_nodes] of the sources found so far; pairs, where not null, takes them as the columns of the
//   shells behind each other, whose row pointers are shell_rowptr [max_hops, num_nodes + 1], every shell from 0 on
template <typename index_t>
__global__ void search_kernel(Search<index_t> search, const int64_t* __restrict__ blocks, int64_t num_blocks,
                              int64_t num_nodes, int64_t max_hops, int32_t* counts,
                              const int64_t* __restrict__ shell_rowptr, int32_t* pairs) {
  uint64_t* const visited = search.visited;
  for (int64_t b = blockIdx.x; b < num_blocks; b += gridDim.x) {
    const int64_t first = blocks[b], last = blocks[b + 1];
    for (int64_t source = first; source < last; source += kSetSources) {
      const int64_t num_words = (min(kSetSources, last - source) + 63) / 64;
      uint64_t* frontier = search.frontier;
      uint64_t* fresh = search.fresh;
      for (int64_t v = first + threadIdx.x; v < last; v += kThreads) {
        for (int64_t w = 0; w < num_words; ++w) {
          const uint64_t own = (v - source) / 64 == w && v >= source ? uint64_t(1) << ((v - source) % 64) : 0;
          visited[v * kSetWords + w] = frontier[v * kSetWords + w] = own;
        }
      }
      __syncthreads();
      int64_t shell_begin = 0;
      for (int64_t hop = 0; hop < max_hops; ++hop) {
        const int64_t* starts = shell_rowptr + hop * (num_nodes + 1);
        bool any = false;
        for (int64_t v = first + threadIdx.x; v < last; v += kThreads) {
          const int64_t row = hop * num_nodes + v;
          int64_t next = pairs != nullptr ? shell_begin + starts[v] + counts[row] : 0;
          int32_t found = 0;
          for (int64_t w = 0; w < num_words; ++w) {
            uint64_t word = 0;
            for (int64_t e = search.rowptr[v]; e < search.rowptr[v + 1]; ++e) {
              word |= frontier[search.col[e] * kSetWords + w];
            }
            word &= ~visited[v * kSetWords + w];
            fresh[v * kSetWords + w] = word;
            visited[v * kSetWords + w] |= word;
            if (pairs != nullptr) {
              for (uint64_t rest = word; rest != 0; rest &= rest - 1) {
                pairs[next++] = static_cast<int32_t>(source + 64 * w + __ffsll(static_cast<long long>(rest)) - 1);
              }
            }
            found += __popcll(word);
          }
          counts[row] += found;
          any |= found != 0;
        }
        if (pairs != nullptr) shell_begin += starts[num_nodes];
        if (!__syncthreads_or(any)) break;
        uint64_t* const swapped = frontier;
        frontier = fresh;
        fresh = swapped;
      }
      __syncthreads();
    }
  }
}

template <typename index_t>
void launch(const Tensor& rowptr, const Tensor& col, const Tensor& blocks, int64_t max_hops, int32_t* counts,
            const int64_t* shell_rowptr, int32_t* pairs) {
  const int64_t num_nodes = rowptr.size(0) - 1, num_blocks = blocks.size(0) - 1;
  Tensor sets = allocate(rowptr, {3, num_nodes, kSetWords});
  auto* words = reinterpret_cast<uint64_t*>(sets.mutable_data_ptr<int64_t>());
  Search<index_t> search{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<index_t>()};
  search.visited = words;
  search.frontier = words + num_nodes * kSetWords;
  search.fresh = words + 2 * num_nodes * kSetWords;
  const auto grid = static_cast<unsigned>(std::min<int64_t>(num_blocks, kMaxBlocks));
  search_kernel<index_t><<<grid, kThreads, 0, current_stream(rowptr)>>>(
      search, blocks.const_data_ptr<int64_t>(), num_blocks, num_nodes, max_hops, counts, shell_rowptr, pairs);
  check_launch("k_hop");
}

void run(const Tensor& rowptr, const Tensor& col, const Tensor& blocks, int64_t max_hops, int32_t* counts,
         const int64_t* shell_rowptr, int32_t* pairs) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "k_hop");
  GOSSAMER_CHECK_TENSOR(col, 1, "k_hop");
  GOSSAMER_CHECK_TENSOR(blocks, 1, "k_hop");
  const bool narrow = col.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(narrow || col.scalar_type() == ScalarType::Long, "k_hop: col must be int32 or int64");
  (narrow ? launch<int32_t> : launch<int64_t>)(rowptr, col, blocks, max_hops, counts, shell_rowptr, pairs);
}

// Nothing is kept for k_hop here.
std::tuple<Tensor, Tensor> k_hop_count_cuda(const Tensor& rowptr, const Tensor& col, const Tensor& blocks,
                                            int64_t max_hops, int64_t) {
  const torch::stable::accelerator::DeviceGuard guard(rowptr.get_device_index());
  Tensor counts = torch::stable::new_zeros(rowptr, {max_hops, rowptr.size(0) - 1}, ScalarType::Int);
  Tensor kept = allocate(rowptr, {0}, ScalarType::Byte);
  if (counts.numel() > 0) run(rowptr, col, blocks, max_hops, counts.mutable_data_ptr<int32_t>(), nullptr, nullptr);
  return {counts, kept};
}

Tensor k_hop_cuda(const Tensor& rowptr, const Tensor& col, const Tensor& blocks, const Tensor&,
                  const Tensor& shell_rowptr, int64_t num_pairs) {
  const torch::stable::accelerator::DeviceGuard guard(rowptr.get_device_index());
  GOSSAMER_CHECK_TENSOR(shell_rowptr, 2, "k_hop");
  Tensor pairs = allocate(rowptr, {num_pairs}, ScalarType::Int);
  if (num_pairs == 0) return pairs;
  const int64_t max_hops = shell_rowptr.size(0);
  Tensor counts = torch::stable::new_zeros(rowptr, {max_hops, rowptr.size(0) - 1}, ScalarType::Int);
  run(rowptr, col, blocks, max_hops, counts.mutable_data_ptr<int32_t>(), shell_rowptr.const_data_ptr<int64_t>(),
      pairs.mutable_data_ptr<int32_t>());
  return pairs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("k_hop_count", TORCH_BOX(&k_hop_count_cuda));
  m.impl("k_hop", TORCH_BOX(&k_hop_cuda));
}

}  // namespace gossamer
