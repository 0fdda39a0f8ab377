#include "hashing/plan_routes.h"

#include <tuple>

namespace gossamer {

#include "hashing/hash_plan.h"

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> hash_plan_cpu(const Tensor& table, const Tensor& token_ids,
                                                         int64_t num_experts) {
  GOSSAMER_CHECK_TENSOR(table, 2, "hash_plan");
  GOSSAMER_CHECK_TENSOR(token_ids, 1, "hash_plan");
  GOSSAMER_CHECK(token_ids.scalar_type() == ScalarType::Long, "hash_plan: token_ids must be int64");
  const int64_t num_tokens = token_ids.size(0), k = table.size(1);
  Tensor expert_ids = allocate(token_ids, {num_tokens, k}, ScalarType::Int);
  PlanTensors plan = new_plan(token_ids, num_tokens * k, num_experts);
  const RoutePlanArgs args = plan_args(plan, num_experts, -1);
  int32_t* ids = expert_ids.mutable_data_ptr<int32_t>();
  const auto run = [&](const auto* entries) {
    plan_routes(args, ids, num_tokens, k,
                "hash_plan: token_ids must be in [0, vocab_size) and table entries in [0, num_experts)",
                [&](int32_t* counts, int64_t begin, int64_t end) {
                  return look_up_routes(entries, token_ids.const_data_ptr<int64_t>(), table.size(0), k, num_experts,
                                        ids, counts, begin, end);
                });
  };
  switch (table.scalar_type()) {
    case ScalarType::Short: run(table.const_data_ptr<int16_t>()); break;
    case ScalarType::Int: run(table.const_data_ptr<int32_t>()); break;
    case ScalarType::Long: run(table.const_data_ptr<int64_t>()); break;
    default: GOSSAMER_CHECK(false, "hash_plan: table must be int16, int32 or int64");
  }
  return {expert_ids, plan.order, plan.offsets, plan.inverse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("hash_plan", TORCH_BOX(&hash_plan_cpu)); }

}  // namespace gossamer
