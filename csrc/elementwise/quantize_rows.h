// codes[i, f] = floor(x[i, f] / scale[i] + u) with u uniform in (0, 1), scale[i] = max_f |x[i, f]| / q: integers in
// [-q, q] whose mean is x / scale. q is 127 (8 bits) or 7 (4 bits: two features to a byte, the even one in the low
// half, both plus 8). u has 16 bits, by (seed, step, row, feature). A row that is not finite has scale NaN.

#include "elementwise/draw_bits.h"

// 1 / scale of a row, 0 for rows too small for a float, NaN for rows that are not finite.
template <typename scalar_t>
inline typename Simd<scalar_t>::acc_t inverse_scale(const scalar_t* x, int64_t num_features, float q, float* scale) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  typename S::Vector largest{}, zeros{};
  const auto visit = [&](typename S::Vector v) {
    const auto size = v < 0 ? -v : v;
    largest = size > largest ? size : largest;
    zeros += v * 0;  // NaN if v is not finite
  };
  int64_t f = 0;
  for (; f + S::kLanes <= num_features; f += S::kLanes) visit(S::load(x + f));
  if (f < num_features) {
    scalar_t tail[S::kLanes] = {};
    std::copy(x + f, x + num_features, tail);
    visit(S::load(tail));
  }
  acc_t most = 0, zero = 0;
  for (int64_t lane = 0; lane < S::kLanes; ++lane) {
    most = std::max(most, largest[lane]);
    zero += zeros[lane];
  }
  if (!(zero == 0) || !(most < acc_t(3e38))) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return 0;
  }
  if (most < acc_t(1e-30)) {
    *scale = 0;
    return 0;
  }
  *scale = static_cast<float>(most / q);
  return q / most;
}

template <typename scalar_t>
void quantize_rows(uint64_t seed, uint64_t step, const scalar_t* x, uint8_t* codes, float* scale, int64_t num_features,
                   int bits, int64_t begin, int64_t end) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const int32_t q = bits == 8 ? 127 : 7;
  const int64_t row_bytes = (num_features * bits + 7) / 8;
  uint16_t random_bits[kBlockFeatures];
  int32_t found[kBlockFeatures];
  for (int64_t row = begin; row < end; ++row) {
    const scalar_t* source = x + row * num_features;
    uint8_t* target = codes + row * row_bytes;
    const acc_t inverse = inverse_scale(source, num_features, static_cast<float>(q), scale + row);
    const Random random(seed, step, static_cast<uint64_t>(row));
    for (int64_t block = 0; block < num_features; block += kBlockFeatures) {
      const int64_t size = std::min(kBlockFeatures, num_features - block);
      draw_bits(random, block, random_bits);
      acc_t values[kBlockFeatures] = {};
      if (inverse != 0) {
        for (int64_t i = 0; i < size; ++i) values[i] = static_cast<acc_t>(source[block + i]);
      }
      for (int64_t i = 0; i < kBlockFeatures; ++i) {
        const acc_t y = values[i] * inverse + (static_cast<acc_t>(random_bits[i]) + acc_t(0.5)) * acc_t(0x1p-16);
        const int32_t towards_zero = static_cast<int32_t>(y);
        found[i] = std::clamp(towards_zero - (y < static_cast<acc_t>(towards_zero)), -q, q);
      }
      if (bits == 8) {
        for (int64_t i = 0; i < size; ++i) target[block + i] = static_cast<uint8_t>(found[i]);
      } else {
        if (size % 2 != 0) found[size] = -8;
        for (int64_t i = 0; i < size; i += 2) {
          target[(block + i) / 2] = static_cast<uint8_t>((found[i] + 8) | (found[i + 1] + 8) << 4);
        }
      }
    }
  }
}

// x[i, f] = scale[i] * codes[i, f].
template <typename scalar_t>
void dequantize_rows(const uint8_t* codes, const float* scale, scalar_t* x, int64_t num_features, int bits,
                     int64_t begin, int64_t end) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const int64_t row_bytes = (num_features * bits + 7) / 8;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* source = codes + row * row_bytes;
    scalar_t* target = x + row * num_features;
    const acc_t factor = scale[row];
    if (bits == 8) {
      for (int64_t f = 0; f < num_features; ++f) {
        target[f] = static_cast<scalar_t>(factor * static_cast<acc_t>(static_cast<int8_t>(source[f])));
      }
    } else {
      for (int64_t f = 0; f < num_features; ++f) {
        const int32_t code = (source[f / 2] >> (4 * (f % 2)) & 15) - 8;
        target[f] = static_cast<scalar_t>(factor * static_cast<acc_t>(code));
      }
    }
  }
}
