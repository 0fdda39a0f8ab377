// The frame that route_plan and hash_plan share: chunks, scan, placement. What differs is how a chunk is counted.
#pragma once

#include <atomic>
#include <vector>

#include "common/tensor.h"

namespace gossamer {

#include "hashing/route_plan.h"

constexpr int64_t kMinRoutesPerChunk = 8192;
constexpr int64_t kMaxChunks = 64;

// count(counts, begin, end) counts the routes of tokens [begin, end) and says whether all ids were in range; after all
// chunks were counted, expert_ids [num_tokens, k] must be filled.
template <typename index_t, typename Count>
void plan_routes(const RoutePlanArgs& args, const index_t* expert_ids, int64_t num_tokens, int64_t k,
                 const char* range_error, const Count& count) {
  const int64_t num_chunks = std::clamp<int64_t>(num_tokens * k / kMinRoutesPerChunk, 1, kMaxChunks);
  std::vector<int32_t> counts(num_chunks * args.num_experts);
  std::atomic<bool> valid{true};
  const auto for_each_chunk = [&](const auto& visit) {
    torch::stable::parallel_for(0, num_chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        visit(&counts[c * args.num_experts], num_tokens * c / num_chunks, num_tokens * (c + 1) / num_chunks);
      }
    });
  };
  for_each_chunk([&](int32_t* chunk_counts, int64_t begin, int64_t end) {
    if (!count(chunk_counts, begin, end)) valid = false;
  });
  GOSSAMER_CHECK(valid.load(), range_error);
  scan_routes(counts.data(), num_chunks, args);
  const auto place = args.capacity < 0 ? place_routes<index_t> : place_routes_within_capacity<index_t>;
  for_each_chunk([&](int32_t* next, int64_t begin, int64_t end) { place(expert_ids, args, next, begin * k, end * k); });
}

struct PlanTensors {
  Tensor order, offsets, inverse;
};

// Unused positions of order (dropped routes) hold -1.
inline PlanTensors new_plan(const Tensor& like, int64_t num_routes, int64_t num_experts) {
  GOSSAMER_CHECK(num_routes <= std::numeric_limits<int32_t>::max(), "route_plan: more than 2^31 - 1 routes");
  const auto make = [&](int64_t size) { return allocate(like, {size}, ScalarType::Int); };
  return {make(num_routes), make(num_experts + 1), make(num_routes)};
}

inline RoutePlanArgs plan_args(PlanTensors& plan, int64_t num_experts, int64_t capacity) {
  return {plan.order.mutable_data_ptr<int32_t>(), plan.offsets.mutable_data_ptr<int32_t>(),
          plan.inverse.mutable_data_ptr<int32_t>(), num_experts, capacity};
}

}  // namespace gossamer
