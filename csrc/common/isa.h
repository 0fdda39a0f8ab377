// Which instruction set the CPU kernels run with: chosen at run time, in this one place.
// GOSSAMER_ISA=scalar|avx2|avx512|avx512_bf16 lowers the choice (tests compare the paths with it).
#pragma once

#include <cstdlib>
#include <cstring>

namespace gossamer {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

inline Isa detected_isa() {
#if defined(__x86_64__)
  static const Isa isa = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return Isa::kAvx512Bf16;
    if (avx512) return Isa::kAvx512;
    return avx2 ? Isa::kAvx2 : Isa::kScalar;
  }();
  return isa;
#else
  return Isa::kScalar;
#endif
}

// The instruction set for the next kernel: what the processor has, or less where GOSSAMER_ISA asks for less.
inline Isa current_isa() {
  const Isa detected = detected_isa();
  const char* wanted = std::getenv("GOSSAMER_ISA");
  if (wanted == nullptr) return detected;
  const char* names[] = {"scalar", "avx2", "avx512", "avx512_bf16"};
  for (int i = 0; i < static_cast<int>(detected); ++i) {
    if (std::strcmp(wanted, names[i]) == 0) return static_cast<Isa>(i);
  }
  return detected;
}

}  // namespace gossamer

// Calls FUNCTION of the namespace that was compiled for the current instruction set (see foreach_isa.h).
#if defined(__x86_64__)
#define GOSSAMER_DISPATCH_ISA(FUNCTION, ...)                                         \
  switch (::gossamer::current_isa()) {                                               \
    case ::gossamer::Isa::kAvx512Bf16:                                               \
    case ::gossamer::Isa::kAvx512: ::gossamer::avx512::FUNCTION(__VA_ARGS__); break; \
    case ::gossamer::Isa::kAvx2: ::gossamer::avx2::FUNCTION(__VA_ARGS__); break;     \
    case ::gossamer::Isa::kScalar: ::gossamer::scalar::FUNCTION(__VA_ARGS__); break; \
  }
// The same for a loop that was also compiled for bfloat16 dot products.
#define GOSSAMER_DISPATCH_ISA_BF16(FUNCTION, ...)                  \
  if (::gossamer::current_isa() == ::gossamer::Isa::kAvx512Bf16) { \
    ::gossamer::avx512_bf16::FUNCTION(__VA_ARGS__);                \
  } else {                                                         \
    GOSSAMER_DISPATCH_ISA(FUNCTION, __VA_ARGS__);                  \
  }
// The same function as a pointer, for kernels that are called too often to choose again at every call.
#define GOSSAMER_SELECT_ISA(FUNCTION)                                                    \
  (::gossamer::current_isa() >= ::gossamer::Isa::kAvx512 ? &::gossamer::avx512::FUNCTION \
   : ::gossamer::current_isa() == ::gossamer::Isa::kAvx2 ? &::gossamer::avx2::FUNCTION   \
                                                         : &::gossamer::scalar::FUNCTION)
#else
#define GOSSAMER_DISPATCH_ISA(FUNCTION, ...) ::gossamer::scalar::FUNCTION(__VA_ARGS__)
#define GOSSAMER_DISPATCH_ISA_BF16(FUNCTION, ...) ::gossamer::scalar::FUNCTION(__VA_ARGS__)
#define GOSSAMER_SELECT_ISA(FUNCTION) (&::gossamer::scalar::FUNCTION)
#endif
