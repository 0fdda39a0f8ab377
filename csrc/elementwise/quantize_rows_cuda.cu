#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <tuple>

#include "common/cuda.cuh"
#include "common/random.h"
#include "elementwise/dropout_types.h"

namespace gossamer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

template <typename scalar_t>
using Accumulator = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename acc_t>
__device__ acc_t warp_max(acc_t value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(0xffffffff, value, offset));
  return value;
}

// One warp owns a row; see quantize_rows.h.
template <typename scalar_t>
__global__ void quantize_kernel(const scalar_t* __restrict__ x, uint8_t* __restrict__ codes, float* __restrict__ scale,
                                uint64_t seed, uint64_t step, int64_t num_rows, int64_t num_features, int bits) {
  using acc_t = Accumulator<scalar_t>;
  const int q = bits == 8 ? 127 : 7, lane = threadIdx.x % kWarp;
  const int64_t row_bytes = (num_features * bits + 7) / 8,
                num_warps = static_cast<int64_t>(gridDim.x) * kThreads / kWarp;
  for (int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; row < num_rows;
       row += num_warps) {
    const scalar_t* source = x + row * num_features;
    acc_t most = 0;
    int bad = 0;
    for (int64_t f = lane; f < num_features; f += kWarp) {
      const acc_t size = fabs(static_cast<acc_t>(source[f]));
      bad |= !(size < acc_t(3e38));
      most = max(most, size);
    }
    most = warp_max(most);
    bad = __any_sync(0xffffffff, bad);
    const bool plain = !bad && most >= acc_t(1e-30);
    if (lane == 0) scale[row] = bad ? nanf("") : plain ? static_cast<float>(most / q) : 0.0f;
    const acc_t inverse = plain ? q / most : acc_t(0);
    const Random random(seed, step, static_cast<uint64_t>(row));
    const auto code = [&](int64_t f) {
      const uint32_t drawn = random.draw(static_cast<uint64_t>(f / 4)) >> (16 * (f % 4)) & 0xffff;
      const acc_t value = plain ? static_cast<acc_t>(source[f]) : acc_t(0);
      const acc_t y = value * inverse + (static_cast<acc_t>(drawn) + acc_t(0.5)) * acc_t(0x1p-16);
      return max(-q, min(q, static_cast<int>(floor(y))));
    };
    for (int64_t i = lane; i < row_bytes; i += kWarp) {
      if (bits == 8) {
        codes[row * row_bytes + i] = static_cast<uint8_t>(code(i));
      } else {
        const int high = 2 * i + 1 < num_features ? code(2 * i + 1) + 8 : 0;
        codes[row * row_bytes + i] = static_cast<uint8_t>((code(2 * i) + 8) | high << 4);
      }
    }
  }
}

// One thread owns an element.
template <typename scalar_t>
__global__ void dequantize_kernel(const uint8_t* __restrict__ codes, const float* __restrict__ scale,
                                  scalar_t* __restrict__ x, int64_t num_rows, int64_t num_features, int bits) {
  using acc_t = Accumulator<scalar_t>;
  const int64_t row_bytes = (num_features * bits + 7) / 8, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_rows * num_features;
       i += stride) {
    const int64_t row = i / num_features, f = i % num_features;
    const uint8_t* source = codes + row * row_bytes;
    const int code = bits == 8 ? static_cast<int8_t>(source[f]) : (source[f / 2] >> (4 * (f % 2)) & 15) - 8;
    x[i] = static_cast<scalar_t>(static_cast<acc_t>(scale[row]) * static_cast<acc_t>(code));
  }
}

std::tuple<Tensor, Tensor> quantize_rows_cuda(const Tensor& x, int64_t bits, int64_t seed, int64_t step) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "quantize_rows");
  GOSSAMER_CHECK(bits == 8 || bits == 4, "quantize_rows: bits must be 8 or 4, got ", bits);
  const int64_t num_rows = x.size(0), num_features = x.size(1);
  Tensor codes = allocate(x, {num_rows, (num_features * bits + 7) / 8}, ScalarType::Byte);
  Tensor scale = allocate(x, {num_rows}, ScalarType::Float);
  if (num_rows == 0) return {codes, scale};
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    quantize_kernel<scalar_t><<<num_blocks(num_rows, kThreads / kWarp), kThreads, 0, current_stream(x)>>>(
        x.const_data_ptr<scalar_t>(), codes.mutable_data_ptr<uint8_t>(), scale.mutable_data_ptr<float>(),
        static_cast<uint64_t>(seed), static_cast<uint64_t>(step), num_rows, num_features, static_cast<int>(bits));
  });
  check_launch("quantize_rows");
  return {codes, scale};
}

Tensor dequantize_rows_cuda(const Tensor& codes, const Tensor& scale, int64_t num_features, int64_t bits,
                            ScalarType dtype) {
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  GOSSAMER_CHECK_TENSOR(codes, 2, "dequantize_rows");
  GOSSAMER_CHECK_TENSOR(scale, 1, "dequantize_rows");
  GOSSAMER_CHECK(codes.size(0) == scale.size(0) && codes.size(1) == (num_features * bits + 7) / 8,
                 "dequantize_rows: codes must be of num_features and one row per scale");
  Tensor x = allocate(scale, {scale.size(0), num_features}, dtype);
  if (x.numel() == 0) return x;
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    dequantize_kernel<scalar_t><<<num_blocks(x.numel(), kThreads), kThreads, 0, current_stream(x)>>>(
        codes.const_data_ptr<uint8_t>(), scale.const_data_ptr<float>(), x.mutable_data_ptr<scalar_t>(), x.size(0),
        num_features, static_cast<int>(bits));
  });
  check_launch("dequantize_rows");
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows_cuda));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows_cuda));
}

}  // namespace gossamer
