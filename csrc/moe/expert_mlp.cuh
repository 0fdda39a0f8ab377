// What the two CUDA operators of the experts share. Plain loops: one block owns one row of the result, so nothing is
// atomic and every sum has one order.
#pragma once

#include "moe/cuda_types.cuh"
#include "moe/make_expert_args.h"

namespace gossamer {

constexpr int kExpertThreads = 256;
constexpr int kWarp = 32;

// The expert that owns a position: the last e with offsets[e] <= position.
__device__ inline int64_t expert_of(const int32_t* offsets, int64_t num_experts, int64_t position) {
  int64_t low = 0, high = num_experts;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= position ? low : high) = middle;
  }
  return low;
}

template <typename acc_t>
__device__ acc_t activate(Activation activation, acc_t h, acc_t up, acc_t limit) {
  if (activation == Activation::kRelu) return h > 0 ? h : acc_t(0);
  if (activation == Activation::kGelu) return h * normcdf(h);
  h = h > limit ? limit : h;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return h / (1 + exp(-h)) * up;
}

template <typename acc_t>
__device__ void activation_slopes(Activation activation, acc_t h, acc_t up, acc_t limit, acc_t* by_h, acc_t* by_up) {
  *by_up = 0;
  if (activation == Activation::kRelu) {
    *by_h = h > 0;
  } else if (activation == Activation::kGelu) {
    *by_h = normcdf(h) + h * exp(-h * h / 2) * acc_t(0.3989422804014327);
  } else {
    const acc_t gate = h > limit ? limit : h, s = 1 / (1 + exp(-gate));
    const acc_t bounded = up > limit ? limit : up < -limit ? -limit : up;
    *by_h = h > limit ? acc_t(0) : s * (1 + gate * (1 - s)) * bounded;
    *by_up = bounded != up ? acc_t(0) : gate * s;
  }
}

// <a, b> by one warp; every lane gets the sum.
template <typename scalar_t, typename acc_t = Accumulator<scalar_t>>
__device__ acc_t warp_dot(const scalar_t* a, const scalar_t* b, int64_t size) {
  acc_t sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < size; i += kWarp) {
    sum += static_cast<acc_t>(a[i]) * static_cast<acc_t>(b[i]);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  return sum;
}

// inverse[route] = position of the route in order; the caller has filled inverse with -1.
static __global__ void invert_kernel(const int32_t* __restrict__ order, int32_t* __restrict__ inverse,
                                     int64_t num_positions, int64_t num_routes) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kExpertThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kExpertThreads + threadIdx.x; p < num_positions; p += stride) {
    if (order[p] < 0 || order[p] >= num_routes) __trap();
    inverse[order[p]] = static_cast<int32_t>(p);
  }
}

inline Tensor inverse_of(const Tensor& order, int64_t num_routes) {
  Tensor inverse = allocate(order, {num_routes});
  torch::stable::fill_(inverse, -1);
  invert_kernel<<<num_blocks(order.size(0), kExpertThreads), kExpertThreads, 0, current_stream(order)>>>(
      order.const_data_ptr<int32_t>(), inverse.mutable_data_ptr<int32_t>(), order.size(0), num_routes);
  check_launch("expert_mlp");
  return inverse;
}

}  // namespace gossamer
