// Large results are written once into fresh memory, and the kernel clears every page on its first use: with 4 KB pages
// that costs more than most kernels here. Where the system lets programs ask for 2 MB pages, this asks.
#pragma once

#include "common/tensor.h"

#include <cstdlib>
#include <memory>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gossamer {

constexpr uintptr_t kHugePage = 2 << 20;

inline Tensor with_huge_pages(Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= 2 * kHugePage) {
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / kPage * kPage, MADV_HUGEPAGE);  // only advice
  }
#endif
  return tensor;
}

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using AlignedMemory = std::unique_ptr<T[], FreeMemory>;

// Uninitialised scratch memory, on lines of the cache and, where it is large, on huge pages; null if there is none.
template <typename T>
AlignedMemory<T> aligned_memory(uintptr_t count) {
  const uintptr_t alignment = count * sizeof(T) >= kHugePage ? kHugePage : 64;
  const uintptr_t bytes = (count * sizeof(T) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, bytes);
#if defined(__linux__)
  if (memory != nullptr && alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // only advice
#endif
  return AlignedMemory<T>(static_cast<T*>(memory));
}

}  // namespace gossamer
