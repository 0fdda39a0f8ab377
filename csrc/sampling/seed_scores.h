// What the operators share that score nodes for one seed at a time: their checks, and the seeds on all threads.
#pragma once

#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "sampling/top_nodes.h"

namespace gossamer::sampling {

using Scores = std::tuple<Tensor, Tensor>;

// Where the ids of each type end, from the number of nodes of each.
inline std::vector<int64_t> checked_types(const char* function, const Tensor& rowptr, const Tensor& col,
                                          const Tensor& seeds, const std::vector<int64_t>& num_nodes) {
  for (const Tensor& tensor : {rowptr, col, seeds}) {
    GOSSAMER_CHECK(tensor.dim() == 1 && tensor.is_contiguous(), function,
                   ": rowptr, col and seeds must be contiguous vectors, got ", tensor.dim(), " dimensions");
  }
  const bool is_integer = col.scalar_type() == ScalarType::Int || col.scalar_type() == ScalarType::Long;
  GOSSAMER_CHECK(is_integer, function, ": col must be int32 or int64");
  std::vector<int64_t> type_end(num_nodes.size());
  std::partial_sum(num_nodes.begin(), num_nodes.end(), type_end.begin());
  GOSSAMER_CHECK(!type_end.empty() && type_end.back() == rowptr.numel() - 1, function,
                 ": num_nodes must add up to the rows of the graph");
  return type_end;
}

// node and score [num_types, num_seeds, top_k]. make(columns) is called once on every thread; what it returns is called
// with each seed of that thread and the place of its results.
template <typename Make>
Scores score_seeds(const Tensor& col, const Tensor& seeds, int64_t top_k, const std::vector<int64_t>& type_end,
                   const Make& make) {
  const int64_t num_seeds = seeds.numel(), num_types = static_cast<int64_t>(type_end.size());
  Tensor node = allocate(seeds, {num_types, num_seeds, top_k});
  Tensor score = torch::stable::empty({num_types, num_seeds, top_k}, ScalarType::Float);
  if (num_seeds == 0) return {node, score};
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  int64_t* nodes = node.mutable_data_ptr<int64_t>();
  float* scores = score.mutable_data_ptr<float>();
  const int64_t num_threads = std::min<int64_t>(torch::stable::get_num_threads(), num_seeds);
  std::atomic<int64_t> next{0};  // seeds differ much in cost: threads take the next one when they are free
  const auto run = [&](const auto* columns) {
    torch::stable::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
      auto score_one = make(columns);
      for (int64_t i = next++; i < num_seeds; i = next++) {
        score_one(seed[i], TopOutput{nodes + i * top_k, scores + i * top_k, top_k, num_seeds * top_k});
      }
    });
  };
  if (col.scalar_type() == ScalarType::Int) {
    run(col.const_data_ptr<int32_t>());
  } else {
    run(col.const_data_ptr<int64_t>());
  }
  return {node, score};
}

}  // namespace gossamer::sampling
