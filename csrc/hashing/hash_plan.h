// expert_ids[t, j] = table[token_ids[t], j] for tokens t in [begin, end), counted on the way (see route_plan.h).
//   table [vocab_size, k], token_ids [num_tokens], expert_ids [num_tokens, k], counts [num_experts]
// False where a token id or an expert id is out of range.
template <typename table_t>
bool look_up_routes(const table_t* table, const int64_t* token_ids, int64_t vocab_size, int64_t k, int64_t num_experts,
                    int32_t* expert_ids, int32_t* counts, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t token = token_ids[t];
    if (token < 0 || token >= vocab_size) return false;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t e = table[token * k + j];
      if (e < 0 || e >= num_experts) return false;
      expert_ids[t * k + j] = static_cast<int32_t>(e);
      ++counts[e];
    }
  }
  return true;
}
