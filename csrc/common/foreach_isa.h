// Compiles the loop header GOSSAMER_KERNEL once per instruction set, in the namespaces gossamer::scalar, gossamer::avx2
// and gossamer::avx512. The loop is written once, on the vectors of simd.h. Define GOSSAMER_KERNEL, then include this
// file once per translation unit. The loop header must not include anything: what it needs is included here.
// A loop that gains from bfloat16 dot products defines GOSSAMER_KERNEL_BF16 as well: it is then also compiled in
// gossamer::avx512_bf16, where GOSSAMER_BF16_DOT is defined (and dispatched by GOSSAMER_DISPATCH_ISA_BF16).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gossamer::scalar {
#define GOSSAMER_VECTOR_BYTES 16
#include "common/simd.h"
#include GOSSAMER_KERNEL
#undef GOSSAMER_VECTOR_BYTES
}  // namespace gossamer::scalar

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
namespace gossamer::avx2 {
#define GOSSAMER_VECTOR_BYTES 32
#include "common/simd.h"
#include GOSSAMER_KERNEL
#undef GOSSAMER_VECTOR_BYTES
}  // namespace gossamer::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
namespace gossamer::avx512 {
#define GOSSAMER_VECTOR_BYTES 64
#include "common/simd.h"
#include GOSSAMER_KERNEL
#undef GOSSAMER_VECTOR_BYTES
}  // namespace gossamer::avx512
#pragma GCC pop_options

#ifdef GOSSAMER_KERNEL_BF16
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
namespace gossamer::avx512_bf16 {
#define GOSSAMER_VECTOR_BYTES 64
#define GOSSAMER_BF16_DOT
#include "common/simd.h"
#include GOSSAMER_KERNEL
#undef GOSSAMER_BF16_DOT
#undef GOSSAMER_VECTOR_BYTES
}  // namespace gossamer::avx512_bf16
#pragma GCC pop_options
#endif

#endif
