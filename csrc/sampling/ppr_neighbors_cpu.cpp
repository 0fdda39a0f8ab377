#include "sampling/ppr_neighbors.h"

#include <atomic>
#include <tuple>

#include "common/tensor.h"

namespace gossamer {
namespace {

template <typename index_t>
void run(const Tensor& rowptr, const Tensor& col, const Tensor& seeds, int64_t top_k, double alpha, double eps,
         Tensor& node, Tensor& score) {
  const int64_t* offsets = rowptr.const_data_ptr<int64_t>();
  const index_t* columns = col.const_data_ptr<index_t>();
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  int64_t* nodes = node.mutable_data_ptr<int64_t>();
  float* scores = score.mutable_data_ptr<float>();
  const int64_t num_threads = std::min<int64_t>(torch::stable::get_num_threads(), seeds.numel());
  std::atomic<int64_t> next{0};  // seeds differ much in cost: threads take the next one when they are free
  torch::stable::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
    sampling::ForwardPush<index_t> forward_push(offsets, columns, rowptr.numel() - 1, alpha, eps);
    for (int64_t i = next++; i < seeds.numel(); i = next++) {
      forward_push.run(seed[i], top_k, nodes + i * top_k, scores + i * top_k);
    }
  });
}

std::tuple<Tensor, Tensor> ppr_neighbors_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& seeds,
                                             int64_t top_k, double alpha, double eps) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "ppr_neighbors");
  GOSSAMER_CHECK_TENSOR(col, 1, "ppr_neighbors");
  GOSSAMER_CHECK_TENSOR(seeds, 1, "ppr_neighbors");
  const bool narrow = col.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(narrow || col.scalar_type() == ScalarType::Long, "ppr_neighbors: col must be int32 or int64");
  Tensor node = torch::stable::new_empty(seeds, {seeds.numel(), top_k});
  Tensor score = torch::stable::empty({seeds.numel(), top_k}, ScalarType::Float);
  if (seeds.numel() > 0) {
    (narrow ? run<int32_t> : run<int64_t>)(rowptr, col, seeds, top_k, alpha, eps, node, score);
  }
  return {node, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("ppr_neighbors", TORCH_BOX(&ppr_neighbors_cpu)); }

}  // namespace gossamer
