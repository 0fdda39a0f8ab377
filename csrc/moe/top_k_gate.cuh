// What the forward and backward kernels of top_k_gate share: scores, and sums over a warp. One warp takes one token.
#pragma once

#include "common/cuda.cuh"
#include "moe/score.h"

namespace gossamer {

constexpr int kGateThreads = 128, kGateWarp = 32, kGateWarps = kGateThreads / kGateWarp;

template <typename scalar_t>
__device__ scalar_t exact_sigmoid(scalar_t x) {
  const scalar_t e = exp(x > 0 ? -x : x);
  return (x > 0 ? scalar_t(1) : e) / (1 + e);
}

// shift: what softmax subtracts from the logit.
template <typename scalar_t>
__device__ scalar_t score_of(Score score, scalar_t x, scalar_t shift) {
  if (score == Score::kSoftmax) return exp(x - shift);
  if (score == Score::kSigmoid) return exact_sigmoid(x);
  return sqrt((x > 0 ? x : scalar_t(0)) + log1p(exp(x > 0 ? -x : x)));
}

// The sum of all lanes, in a fixed order, in every lane.
template <typename scalar_t>
__device__ scalar_t warp_sum(scalar_t x) {
  for (int step = kGateWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

}  // namespace gossamer
