// Large results are written once into fresh memory, and the kernel clears every page on its first use: with 4 KB pages
// that costs more than most kernels here. Where the system lets programs ask for 2 MB pages, this asks.
#pragma once

#include "common/tensor.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gossamer {

inline Tensor with_huge_pages(Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096, kHugePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= 2 * kHugePage) {
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / kPage * kPage, MADV_HUGEPAGE);  // only advice
  }
#endif
  return tensor;
}

}  // namespace gossamer
