#include "hashing/plan_routes.cuh"

#include <tuple>

namespace gossamer {
namespace {

constexpr int kThreads = 256;

// One thread looks up one route.
template <typename table_t>
__global__ void look_up_kernel(const table_t* __restrict__ table, const int64_t* __restrict__ token_ids,
                               int32_t* __restrict__ expert_ids, int64_t vocab_size, int64_t k, int64_t num_routes) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; r < num_routes; r += stride) {
    const int64_t token = token_ids[r / k];
    if (token < 0 || token >= vocab_size) __trap();
    expert_ids[r] = static_cast<int32_t>(table[token * k + r % k]);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hash_plan_cuda(const Tensor& table, const Tensor& token_ids,
                                                          int64_t num_experts) {
  const torch::stable::accelerator::DeviceGuard guard(token_ids.get_device_index());
  GOSSAMER_CHECK_TENSOR(table, 2, "hash_plan");
  GOSSAMER_CHECK_TENSOR(token_ids, 1, "hash_plan");
  const int64_t k = table.size(1), num_routes = token_ids.size(0) * k;
  Tensor expert_ids = allocate(token_ids, {token_ids.size(0), k}, ScalarType::Int);
  int32_t* ids = expert_ids.mutable_data_ptr<int32_t>();
  const auto look_up = [&](const auto* entries) {
    look_up_kernel<<<num_blocks(num_routes, kThreads), kThreads, 0, current_stream(table)>>>(
        entries, token_ids.const_data_ptr<int64_t>(), ids, table.size(0), k, num_routes);
    check_launch("hash_plan");
  };
  switch (table.scalar_type()) {
    case ScalarType::Short: look_up(table.const_data_ptr<int16_t>()); break;
    case ScalarType::Int: look_up(table.const_data_ptr<int32_t>()); break;
    case ScalarType::Long: look_up(table.const_data_ptr<int64_t>()); break;
    default: GOSSAMER_CHECK(false, "hash_plan: table must be int16, int32 or int64");
  }
  PlanTensors plan = plan_routes<int32_t>(expert_ids, ids, num_routes, num_experts, -1);
  return {expert_ids, plan.order, plan.offsets, plan.inverse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("hash_plan", TORCH_BOX(&hash_plan_cuda)); }

}  // namespace gossamer
