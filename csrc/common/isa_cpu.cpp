#include "common/isa.h"
#include "common/tensor.h"

namespace gossamer {
namespace {

std::string instruction_set() {
  const char* names[] = {"scalar", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(current_isa())];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}

}  // namespace gossamer
