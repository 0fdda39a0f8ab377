#define GOSSAMER_KERNEL "moe/dispatch.h"
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "common/tensor.h"
#include "moe/check_plan.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;
constexpr int64_t kStreamBytes = 8 << 20;  // smaller results are soon read again: they stay in the cache

Tensor dispatch_cpu(const Tensor& x, const Tensor& order, const Tensor&, int64_t k) {
  GOSSAMER_CHECK_TENSOR(x, 2, "dispatch");
  const int64_t num_routes = order.size(0), row_bytes = x.size(1) * x.element_size();
  const int32_t* routes = checked_indices(order, 0, x.size(0) * k, "dispatch: plan must be of this x");
  Tensor out = with_huge_pages(allocate(x, {num_routes, x.size(1)}));
  if (out.numel() == 0) return out;
  const char* in = static_cast<const char*>(x.const_data_ptr());
  char* result = static_cast<char*>(out.mutable_data_ptr());
  const bool aligned = row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
  const bool stream = aligned && num_routes * row_bytes > kStreamBytes;
  torch::stable::parallel_for(0, num_routes, kGrainBytes / row_bytes + 1, [&](int64_t begin, int64_t end) {
    GOSSAMER_DISPATCH_ISA(dispatch, in, routes, result, static_cast<int32_t>(k), row_bytes, stream, begin, end);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("dispatch", TORCH_BOX(&dispatch_cpu)); }

}  // namespace gossamer
