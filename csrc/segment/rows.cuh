// What the CUDA operators over CSR rows share: one warp owns one row at a time, so no result needs atomics and every
// run gives the same bits.
#pragma once

#include "common/cuda.cuh"
#include "segment/rows.h"

namespace gossamer {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarpsPerBlock = kThreads / kLanes;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline int lane_id() { return threadIdx.x % kLanes; }

// The first row of this warp, and the distance to its next one.
__device__ inline int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kLanes;
}
__device__ inline int64_t row_stride() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }

// The sum over the lanes, in every lane.
template <typename acc_t>
__device__ inline acc_t warp_sum(acc_t value) {
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

}  // namespace gossamer
