// A stable counting sort of routes by expert. Route r = t * k + j is the j-th choice of token t. No includes: see
// route_plan_cpu.cpp and hash_plan_cpu.cpp.
//   order [num_routes]: routes sorted by expert, in token order within an expert; offsets [num_experts + 1]
//   inverse [num_routes]: position of each route in order, -1 where it was dropped
// Threads own consecutive chunks of routes: each counts its chunk, one exclusive scan over (expert, chunk) gives every
// chunk its first position per expert, and each places its chunk. The result is the same for any number of chunks.

struct RoutePlanArgs {
  int32_t* order;
  int32_t* offsets;
  int32_t* inverse;
  int64_t num_experts;
  int64_t capacity;  // routes kept per expert; -1 keeps all and forbids expert id -1
};

// Counts the expert ids of routes [begin, end). False where an id is out of range.
template <typename index_t>
bool count_routes(const index_t* expert_ids, const RoutePlanArgs& args, int32_t* counts, int64_t begin, int64_t end) {
  bool valid = true;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t e = expert_ids[r];
    if (e >= 0 && e < args.num_experts) {
      ++counts[e];
    } else {
      valid &= e == -1 && args.capacity >= 0;
    }
  }
  return valid;
}

// Turns counts [num_chunks, num_experts] into the position of each chunk's first route of every expert, and the kept
// totals into offsets.
inline void scan_routes(int32_t* counts, int64_t num_chunks, const RoutePlanArgs& args) {
  int32_t total = 0;
  for (int64_t e = 0; e < args.num_experts; ++e) {
    int32_t rank = 0;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const int32_t count = counts[c * args.num_experts + e];
      counts[c * args.num_experts + e] = total + rank;
      rank += count;
    }
    args.offsets[e] = total;
    total += args.capacity < 0 ? rank : static_cast<int32_t>(std::min<int64_t>(rank, args.capacity));
  }
  args.offsets[args.num_experts] = total;
}

// Places routes [begin, end), the next of expert e at next[e].
template <typename index_t>
void place_routes(const index_t* expert_ids, const RoutePlanArgs& args, int32_t* next, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int32_t position = next[expert_ids[r]]++;
    args.order[position] = static_cast<int32_t>(r);
    args.inverse[r] = position;
  }
}

// The same, leaving out routes without an expert and those beyond the capacity: without a branch on which ones.
template <typename index_t>
void place_routes_within_capacity(const index_t* expert_ids, const RoutePlanArgs& args, int32_t* next, int64_t begin,
                                  int64_t end) {
  int32_t dropped;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t e = expert_ids[r];
    const int32_t position = e >= 0 ? next[e]++ : -1;
    const bool kept = e >= 0 && position < args.offsets[e + 1];
    int32_t* const place = kept ? args.order + position : &dropped;
    *place = static_cast<int32_t>(r);
    args.inverse[r] = kept ? position : -1;
  }
}
