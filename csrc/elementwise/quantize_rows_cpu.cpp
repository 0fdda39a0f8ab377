#include "common/tensor.h"
#include "elementwise/dropout_types.h"
#define GOSSAMER_KERNEL "elementwise/quantize_rows.h"
#include "common/random.h"

#include "common/foreach_isa.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainElements = 1 << 15;

int64_t grain_rows(int64_t num_features) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, num_features));
}

std::tuple<Tensor, Tensor> quantize_rows_cpu(const Tensor& x, int64_t bits, int64_t seed, int64_t step) {
  GOSSAMER_CHECK_TENSOR(x, 2, "quantize_rows");
  GOSSAMER_CHECK(bits == 8 || bits == 4, "quantize_rows: bits must be 8 or 4, got ", bits);
  const int64_t num_rows = x.size(0), num_features = x.size(1);
  Tensor codes = allocate(x, {num_rows, (num_features * bits + 7) / 8}, ScalarType::Byte);
  Tensor scale = allocate(x, {num_rows}, ScalarType::Float);
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const scalar_t* source = x.const_data_ptr<scalar_t>();
    uint8_t* target = codes.mutable_data_ptr<uint8_t>();
    float* scales = scale.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, num_rows, grain_rows(num_features), [&](int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(quantize_rows, static_cast<uint64_t>(seed), static_cast<uint64_t>(step), source, target,
                            scales, num_features, static_cast<int>(bits), begin, end);
    });
  });
  return {codes, scale};
}

Tensor dequantize_rows_cpu(const Tensor& codes, const Tensor& scale, int64_t num_features, int64_t bits,
                           ScalarType dtype) {
  GOSSAMER_CHECK_TENSOR(codes, 2, "dequantize_rows");
  GOSSAMER_CHECK_TENSOR(scale, 1, "dequantize_rows");
  GOSSAMER_CHECK(codes.size(0) == scale.size(0) && codes.size(1) == (num_features * bits + 7) / 8,
                 "dequantize_rows: codes must be of num_features and one row per scale");
  Tensor x = allocate(scale, {scale.size(0), num_features}, dtype);
  const uint8_t* source = codes.const_data_ptr<uint8_t>();
  const float* scales = scale.const_data_ptr<float>();
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    scalar_t* target = x.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, scale.size(0), grain_rows(num_features), [&](int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(dequantize_rows, source, scales, target, num_features, static_cast<int>(bits), begin, end);
    });
  });
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows_cpu));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows_cpu));
}

}  // namespace gossamer
