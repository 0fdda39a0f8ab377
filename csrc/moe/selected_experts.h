// Expert ids of tokens by a table, checked on the way.
#pragma once

#include "common/tensor.h"

namespace gossamer {

// expert_ids[t, j] = table[token_ids[t], j]; an error where a token or an expert does not exist.
template <typename index_t>
void look_up_experts(const Tensor& table, const Tensor& token_ids, int64_t num_experts, int32_t* expert_ids) {
  const index_t* entries = table.const_data_ptr<index_t>();
  const int64_t* tokens = token_ids.const_data_ptr<int64_t>();
  const int64_t vocab = table.size(0), k = table.size(1);
  bool valid = true;
  for (int64_t t = 0; t < token_ids.numel() && valid; ++t) {
    valid = tokens[t] >= 0 && tokens[t] < vocab;
    for (int64_t j = 0; j < k && valid; ++j) {
      const int64_t e = entries[tokens[t] * k + j];
      valid = e >= 0 && e < num_experts;
      expert_ids[t * k + j] = static_cast<int32_t>(e);
    }
  }
  GOSSAMER_CHECK(valid, "hash_gate: token_ids must be in [0, vocab_size) and table entries in [0, num_experts)");
}

inline void look_up_experts(const Tensor& table, const Tensor& token_ids, int64_t num_experts, int32_t* expert_ids) {
  switch (table.scalar_type()) {
    case ScalarType::Short: return look_up_experts<int16_t>(table, token_ids, num_experts, expert_ids);
    case ScalarType::Int: return look_up_experts<int32_t>(table, token_ids, num_experts, expert_ids);
    case ScalarType::Long: return look_up_experts<int64_t>(table, token_ids, num_experts, expert_ids);
    default: GOSSAMER_CHECK(false, "hash_gate: table must be int16, int32 or int64");
  }
}

}  // namespace gossamer
