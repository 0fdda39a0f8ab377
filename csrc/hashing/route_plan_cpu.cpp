#include "hashing/plan_routes.h"

#include <tuple>

namespace gossamer {
namespace {

std::tuple<Tensor, Tensor, Tensor> route_plan_cpu(const Tensor& expert_ids, int64_t num_experts, int64_t capacity) {
  GOSSAMER_CHECK_TENSOR(expert_ids, 2, "route_plan");
  const bool narrow = expert_ids.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(narrow || expert_ids.scalar_type() == ScalarType::Long,
                 "route_plan: expert_ids must be int32 or int64");
  const int64_t k = expert_ids.size(1);
  PlanTensors plan = new_plan(expert_ids, expert_ids.numel(), num_experts);
  const RoutePlanArgs args = plan_args(plan, num_experts, capacity);
  if (capacity >= 0) std::fill_n(args.order, expert_ids.numel(), -1);
  const auto run = [&](const auto* ids) {
    plan_routes(args, ids, expert_ids.size(0), k, "route_plan: expert_ids must be in [0, num_experts)",
                [&](int32_t* counts, int64_t begin, int64_t end) {
                  return count_routes(ids, args, counts, begin * k, end * k);
                });
  };
  narrow ? run(expert_ids.const_data_ptr<int32_t>()) : run(expert_ids.const_data_ptr<int64_t>());
  return {plan.order, plan.offsets, plan.inverse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("route_plan", TORCH_BOX(&route_plan_cpu)); }

}  // namespace gossamer
