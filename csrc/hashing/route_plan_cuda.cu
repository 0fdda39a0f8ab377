#include "hashing/plan_routes.cuh"

#include <tuple>

namespace gossamer {
namespace {

std::tuple<Tensor, Tensor, Tensor> route_plan_cuda(const Tensor& expert_ids, int64_t num_experts, int64_t capacity) {
  const torch::stable::accelerator::DeviceGuard guard(expert_ids.get_device_index());
  GOSSAMER_CHECK_TENSOR(expert_ids, 2, "route_plan");
  const auto run = [&](const auto* ids) {
    PlanTensors plan = plan_routes(expert_ids, ids, expert_ids.numel(), num_experts, capacity);
    return std::make_tuple(plan.order, plan.offsets, plan.inverse);
  };
  switch (expert_ids.scalar_type()) {
    case ScalarType::Int: return run(expert_ids.const_data_ptr<int32_t>());
    case ScalarType::Long: return run(expert_ids.const_data_ptr<int64_t>());
    default: GOSSAMER_CHECK(false, "route_plan: expert_ids must be int32 or int64");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("route_plan", TORCH_BOX(&route_plan_cuda)); }

}  // namespace gossamer
