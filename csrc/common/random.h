// Counter-based random numbers, the same on CPU and GPU: draw n of a stream is a pure function of (seed, stream, item,
// n), so results do not depend on threads, batch mates or order. The mixing is that of SplitMix64 (Steele, Lea and
// Flood 2014, with the constants of Stafford's variant 13).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GOSSAMER_HOST_DEVICE __host__ __device__
#else
#define GOSSAMER_HOST_DEVICE
#endif

namespace gossamer {

constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15;

// Bits is uint64_t or a vector of it; always inlined, so that a vector takes the instruction set of the caller.
template <typename Bits>
GOSSAMER_HOST_DEVICE __attribute__((always_inline)) inline Bits mix_bits(Bits x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// High and low half of the 128-bit product.
GOSSAMER_HOST_DEVICE inline uint64_t multiply_high(uint64_t a, uint64_t b, uint64_t* low) {
  *low = a * b;
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  __extension__ using uint128_t = unsigned __int128;
  return static_cast<uint64_t>((static_cast<uint128_t>(a) * b) >> 64);
#endif
}

// The random numbers of one item. `stream` keeps different uses of one seed apart (a hop, a layer, a step).
class Random {
 public:
  GOSSAMER_HOST_DEVICE Random(uint64_t seed, uint64_t stream, uint64_t item)
      : state_(mix_bits(mix_bits(seed + kGoldenRatio * (stream + 1)) + kGoldenRatio * (item + 1))) {}

  GOSSAMER_HOST_DEVICE uint64_t next() { return mix_bits(state_ += kGoldenRatio); }

  // What call n of next() from here on would return, counted from 0; n may be a vector.
  template <typename Bits>
  GOSSAMER_HOST_DEVICE __attribute__((always_inline)) Bits draw(Bits n) const {
    return mix_bits((n + 1) * kGoldenRatio + state_);
  }

  // Uniform in [0, n) for n >= 1; no value is off by more than n / 2^64 in probability.
  GOSSAMER_HOST_DEVICE uint64_t below(uint64_t n) { return below_of(next(), n); }

  // Uniform in [0, n), and where the draw fell within that value: 32 more uniform bits from the same number.
  GOSSAMER_HOST_DEVICE uint64_t below(uint64_t n, uint32_t* fraction) { return below_of(next(), n, fraction); }

  // Uniform in (0, 1): odd multiples of 2^-53, so that neither end occurs.
  GOSSAMER_HOST_DEVICE double uniform() { return uniform_of(next()); }

  // What these make of a result of next().
  GOSSAMER_HOST_DEVICE static uint64_t below_of(uint64_t bits, uint64_t n) {
    uint64_t fraction;
    return multiply_high(bits, n, &fraction);
  }

  GOSSAMER_HOST_DEVICE static uint64_t below_of(uint64_t bits, uint64_t n, uint32_t* fraction) {
    uint64_t low;
    const uint64_t value = multiply_high(bits, n, &low);
    *fraction = static_cast<uint32_t>(low >> 32);
    return value;
  }

  GOSSAMER_HOST_DEVICE static double uniform_of(uint64_t bits) {
    return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  }

 private:
  uint64_t state_;
};

}  // namespace gossamer
