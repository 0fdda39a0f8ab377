// The counting sort of route_plan.h on the device, in three launches without synchronisation: count, scan, place.
#pragma once

#include "common/cuda.cuh"

namespace gossamer {

constexpr int kPlanThreads = 128;
constexpr int kWarp = 32;
constexpr int64_t kRoutesPerChunk = 1024;  // one warp owns a chunk, so that places follow token order

// Expert of a route, or -1. A wrong id stops the kernel, like an index out of range in torch.
template <typename index_t>
__device__ int checked_expert(const index_t* expert_ids, int64_t r, int64_t num_experts, bool may_drop) {
  const int64_t e = expert_ids[r];
  if (e >= num_experts || e < (may_drop ? -1 : 0)) __trap();
  return static_cast<int>(e);
}

// One warp counts one chunk: lanes with the same expert find each other, the first of them adds their number.
template <typename index_t>
__global__ void count_routes_kernel(const index_t* __restrict__ expert_ids, int32_t* __restrict__ counts,
                                    int64_t num_routes, int64_t num_chunks, int64_t num_experts, bool may_drop) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kPlanThreads / kWarp);
  for (int64_t c = (static_cast<int64_t>(blockIdx.x) * kPlanThreads + threadIdx.x) / kWarp; c < num_chunks;
       c += stride) {
    int32_t* chunk_counts = counts + c * num_experts;
    for (int64_t e = lane; e < num_experts; e += kWarp) chunk_counts[e] = 0;
    __syncwarp();
    const int64_t end = min((c + 1) * kRoutesPerChunk, num_routes);
    for (int64_t base = c * kRoutesPerChunk; base < end; base += kWarp) {
      const int64_t r = base + lane;
      const int e = r < end ? checked_expert(expert_ids, r, num_experts, may_drop) : -1;
      const unsigned peers = __match_any_sync(0xffffffff, e);
      if (e >= 0 && lane == __ffs(peers) - 1) chunk_counts[e] += __popc(peers);
      __syncwarp();
    }
  }
}

// One block: each thread scans the chunks of some experts, then thread 0 sums the totals into offsets.
static __global__ void scan_routes_kernel(int32_t* __restrict__ counts, int32_t* __restrict__ offsets,
                                          int64_t num_chunks, int64_t num_experts, int64_t capacity) {
  for (int64_t e = threadIdx.x; e < num_experts; e += blockDim.x) {
    int32_t rank = 0;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const int32_t count = counts[c * num_experts + e];
      counts[c * num_experts + e] = rank;
      rank += count;
    }
    offsets[e + 1] = capacity >= 0 && rank > capacity ? static_cast<int32_t>(capacity) : rank;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    for (int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];
  }
}

// One warp places one chunk, 32 routes at a time: the rank within an expert is the number of lower lanes with it.
template <typename index_t>
__global__ void place_routes_kernel(const index_t* __restrict__ expert_ids, int32_t* __restrict__ ranks,
                                    const int32_t* __restrict__ offsets, int32_t* __restrict__ order,
                                    int32_t* __restrict__ inverse, int64_t num_routes, int64_t num_chunks,
                                    int64_t num_experts) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kPlanThreads / kWarp);
  for (int64_t c = (static_cast<int64_t>(blockIdx.x) * kPlanThreads + threadIdx.x) / kWarp; c < num_chunks;
       c += stride) {
    int32_t* rank = ranks + c * num_experts;
    const int64_t end = min((c + 1) * kRoutesPerChunk, num_routes);
    for (int64_t base = c * kRoutesPerChunk; base < end; base += kWarp) {
      const int64_t r = base + lane;
      const int e = r < end ? static_cast<int>(expert_ids[r]) : -1;
      const unsigned peers = __match_any_sync(0xffffffff, e);
      const int before = __popc(peers & ((1u << lane) - 1));
      const int first = e >= 0 ? rank[e] : 0;
      __syncwarp();
      if (e >= 0 && before == 0) rank[e] = first + __popc(peers);
      __syncwarp();
      if (r >= end) continue;
      const int position = e >= 0 ? offsets[e] + first + before : -1;
      const bool kept = e >= 0 && position < offsets[e + 1];
      if (kept) order[position] = static_cast<int32_t>(r);
      inverse[r] = kept ? position : -1;
    }
  }
}

struct PlanTensors {
  Tensor order, offsets, inverse;
};

template <typename index_t>
PlanTensors plan_routes(const Tensor& like, const index_t* expert_ids, int64_t num_routes, int64_t num_experts,
                        int64_t capacity) {
  const auto make = [&](int64_t size) { return allocate(like, {size}, ScalarType::Int); };
  const int64_t num_chunks = (num_routes + kRoutesPerChunk - 1) / kRoutesPerChunk;
  PlanTensors plan{make(num_routes), make(num_experts + 1), make(num_routes)};
  Tensor counts = make(num_chunks * num_experts);
  const cudaStream_t stream = current_stream(like);
  const unsigned blocks = num_blocks(num_chunks, kPlanThreads / kWarp);
  if (capacity >= 0) torch::stable::fill_(plan.order, -1);
  count_routes_kernel<<<blocks, kPlanThreads, 0, stream>>>(expert_ids, counts.mutable_data_ptr<int32_t>(), num_routes,
                                                           num_chunks, num_experts, capacity >= 0);
  scan_routes_kernel<<<1, 1024, 0, stream>>>(
      counts.mutable_data_ptr<int32_t>(), plan.offsets.mutable_data_ptr<int32_t>(), num_chunks, num_experts, capacity);
  place_routes_kernel<<<blocks, kPlanThreads, 0, stream>>>(
      expert_ids, counts.mutable_data_ptr<int32_t>(), plan.offsets.const_data_ptr<int32_t>(),
      plan.order.mutable_data_ptr<int32_t>(), plan.inverse.mutable_data_ptr<int32_t>(), num_routes, num_chunks,
      num_experts);
  check_launch("route_plan");
  return plan;
}

}  // namespace gossamer
