#include "moe/score.h"
#define GOSSAMER_KERNEL "moe/top_k_gate.h"
#include "common/foreach_isa.h"
#include "hashing/plan_routes.h"

#include <string>
#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kTokensPerBlock = 256;  // the sums of a block are added up in order, whoever computed it

// Calls call(args, loop) with the arguments and the loop of the instruction set in force.
template <typename scalar_t, typename Call>
void for_isa(const Call& call) {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
    case Isa::kAvx512: return call(avx512::TopKGateArgs<scalar_t>{}, avx512::top_k_gate<scalar_t>);
    case Isa::kAvx2: return call(avx2::TopKGateArgs<scalar_t>{}, avx2::top_k_gate<scalar_t>);
#endif
    default: return call(scalar::TopKGateArgs<scalar_t>{}, scalar::top_k_gate<scalar_t>);
  }
}

void check(const Tensor& logits, const OptionalTensor& bias, int64_t k, Score score, int64_t num_groups,
           int64_t top_groups) {
  GOSSAMER_CHECK_TENSOR(logits, 2, "top_k_gate");
  const int64_t num_experts = logits.size(1);
  GOSSAMER_CHECK(num_experts >= 1 && num_experts <= std::numeric_limits<int32_t>::max(),
                 "top_k_gate: there must be at least one expert");
  GOSSAMER_CHECK(score != Score::kUnknown, "top_k_gate: score must be softmax, sigmoid or sqrt_softplus");
  GOSSAMER_CHECK(num_groups >= 1 && num_experts % num_groups == 0 && top_groups >= 1 && top_groups <= num_groups,
                 "top_k_gate: groups must divide the experts");
  GOSSAMER_CHECK(k >= 1 && k <= top_groups * (num_experts / num_groups),
                 "top_k_gate: k must be in [1, experts of the top groups]");
  GOSSAMER_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == num_experts && bias->is_contiguous() &&
                                       bias->scalar_type() == logits.scalar_type()),
                 "top_k_gate: bias must be [num_experts], of the type of logits");
}

// Position of every kept route within its expert, -1 where dropped.
void locate(const RoutePlanArgs& plan, const int32_t* expert_ids, int32_t* locations, int64_t num_routes) {
  torch::stable::parallel_for(0, num_routes, kMinRoutesPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t place = plan.inverse[r] - plan.offsets[expert_ids[r]];
      locations[r] = std::max(place, -1);  // below 0 only where dropped
    }
  });
}

// Gates and scores of all tokens; score_sums [num_experts] where it is not null.
template <typename scalar_t>
void gate_tokens(const Tensor& logits, const OptionalTensor& bias, Tensor& gates, Tensor& expert_ids,
                 Tensor& normalizers, scalar_t* score_sums, int64_t num_groups, int64_t top_groups, double scale,
                 Score score, bool normalize) {
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const int64_t num_blocks = (num_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  std::vector<scalar_t> sums(score_sums == nullptr ? 0 : num_blocks * num_experts);
  for_isa<scalar_t>([&](auto args, auto loop) {
    args = {logits.const_data_ptr<scalar_t>(),
            data_or_null<scalar_t>(bias),
            gates.mutable_data_ptr<scalar_t>(),
            expert_ids.mutable_data_ptr<int32_t>(),
            normalizers.mutable_data_ptr<scalar_t>(),
            num_experts,
            gates.size(1),
            num_groups,
            top_groups,
            static_cast<scalar_t>(scale),
            score,
            normalize,
            score_sums != nullptr};
    torch::stable::parallel_for(0, num_blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        loop(args, sums.data() + (score_sums == nullptr ? 0 : b * num_experts), b * kTokensPerBlock,
             std::min(num_tokens, (b + 1) * kTokensPerBlock));
      }
    });
  });
  if (score_sums == nullptr) return;
  std::fill_n(score_sums, num_experts, scalar_t(0));
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int64_t e = 0; e < num_experts; ++e) score_sums[e] += sums[b * num_experts + e];
  }
}

// gates, expert_ids and locations [num_tokens, k], the plan (order, offsets, inverse), normalizers [num_tokens],
// score_sums [num_experts] or [0].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> top_k_gate_cpu(
    const Tensor& logits, const OptionalTensor& bias, int64_t k, std::string name, bool normalize, double scale,
    int64_t num_groups, int64_t top_groups, int64_t capacity, bool sums) {
  const Score score = score_named(name);
  check(logits, bias, k, score, num_groups, top_groups);
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1), num_routes = num_tokens * k;
  Tensor gates = allocate(logits, {num_tokens, k});
  Tensor expert_ids = allocate(logits, {num_tokens, k}, ScalarType::Int);
  Tensor locations = allocate(logits, {num_tokens, k}, ScalarType::Int);
  Tensor normalizers = allocate(logits, {num_tokens});
  Tensor score_sums = allocate(logits, {sums ? num_experts : 0});
  const auto gate = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    gate_tokens(logits, bias, gates, expert_ids, normalizers, sums ? score_sums.mutable_data_ptr<scalar_t>() : nullptr,
                num_groups, top_groups, scale, score, normalize);
  };
  switch (logits.scalar_type()) {
    case ScalarType::Float: gate(float{}); break;
    case ScalarType::Double: gate(double{}); break;
    default: GOSSAMER_CHECK(false, "top_k_gate: logits must be float32 or float64");
  }
  PlanTensors plan = new_plan(logits, num_routes, num_experts);
  const RoutePlanArgs args = plan_args(plan, num_experts, capacity);
  if (capacity >= 0) std::fill_n(args.order, num_routes, -1);
  const int32_t* ids = expert_ids.const_data_ptr<int32_t>();
  plan_routes(
      args, ids, num_tokens, k, "top_k_gate: expert ids out of range",
      [&](int32_t* counts, int64_t begin, int64_t end) { return count_routes(ids, args, counts, begin * k, end * k); });
  locate(args, ids, locations.mutable_data_ptr<int32_t>(), num_routes);
  return {gates, expert_ids, locations, plan.order, plan.offsets, plan.inverse, normalizers, score_sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("top_k_gate", TORCH_BOX(&top_k_gate_cpu)); }

}  // namespace gossamer
