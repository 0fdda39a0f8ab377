#include <cstring>
#include <utility>
#include <vector>

#include "common/tensor.h"
#include "sampling/sample_compressed.h"

namespace gossamer {
namespace {

using namespace sampling;

constexpr uint32_t kLargestBase = uint32_t{1} << 31;  // local ids must fit between it and the end of 32 bits

// Runs its argument on every thread that torch would use.
struct Parallel {
  template <typename Worker>
  void operator()(const Worker& worker) const {
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) worker();
    });
  }
};

// The table that is kept between calls ends with the base of the next call, as that of neighbor_sample.
Sample sample_with_table(const CompressedRequest& request, Tensor& table) {
  GOSSAMER_CHECK(table.is_contiguous() && table.numel() == request.rows.num_nodes + 1,
                 "neighbor_sample_compressed: table must have one entry per node and one more, got ", table.numel());
  uint32_t* entries = reinterpret_cast<uint32_t*>(table.mutable_data_ptr<int32_t>());
  uint32_t& next_base = entries[request.rows.num_nodes];
  if (next_base == 0 || next_base > kLargestBase) {
    std::memset(entries, 0, table.numel() * sizeof(uint32_t));
    next_base = 1;
  }
  Sample sample = sample_compressed(request, entries, next_base, Parallel{});
  next_base += static_cast<uint32_t>(sample.node[0].size());
  return sample;
}

Tensor to_tensor(const std::vector<int64_t>& values) {
  Tensor tensor = torch::stable::empty({static_cast<int64_t>(values.size())}, ScalarType::Long);
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr<int64_t>(), values.data(), values.size() * sizeof(int64_t));
  return tensor;
}

// node, row, col, edge, and the counts of nodes and of edges per hop.
std::vector<Tensor> pack(const Sample& sample) {
  int64_t size = 0;
  for (const int64_t n : sample.num_edges[0]) size += n;
  std::vector<Tensor> out{to_tensor(sample.node[0])};
  for (int i = 0; i < 3; ++i) out.push_back(torch::stable::empty({size}, ScalarType::Long));
  int64_t* row = out[1].mutable_data_ptr<int64_t>();
  int64_t* col = out[2].mutable_data_ptr<int64_t>();
  int64_t* edge = out[3].mutable_data_ptr<int64_t>();
  for (const Block& block : sample.blocks) {
    row = std::copy_n(block.source.get(), block.size, row);
    edge = std::copy_n(block.position.get(), block.size, edge);
    for (size_t i = 0; i < block.count.size(); ++i) {
      col = std::fill_n(col, block.count[i], block.first_target + static_cast<int64_t>(i));
    }
  }
  out.push_back(to_tensor(sample.num_nodes[0]));
  out.push_back(to_tensor(sample.num_edges[0]));
  return out;
}

std::vector<Tensor> neighbor_sample_compressed_cpu(const Tensor& codes, const Tensor& offsets, const Tensor& positions,
                                                   const Tensor& bases, const Tensor& seeds,
                                                   std::vector<double> fanouts, int64_t seed, bool replace,
                                                   Tensor table) {
  for (const Tensor& tensor : {codes, offsets, positions, bases, seeds}) {
    GOSSAMER_CHECK_TENSOR(tensor, 1, "neighbor_sample_compressed");
  }
  CompressedRequest request;
  request.rows = {codes.const_data_ptr<uint8_t>(), offsets.const_data_ptr<int64_t>(),
                  reinterpret_cast<const uint32_t*>(positions.const_data_ptr<int32_t>()),
                  bases.const_data_ptr<int64_t>(), positions.numel() - 1};
  const int64_t* first = seeds.const_data_ptr<int64_t>();
  request.seeds.assign(first, first + seeds.numel());
  for (const int64_t node : request.seeds) {
    GOSSAMER_CHECK(0 <= node && node < request.rows.num_nodes,
                   "neighbor_sample_compressed: seeds must be in [0, num_nodes), got ", node);
  }
  request.fanouts = std::move(fanouts);
  request.seed = static_cast<uint64_t>(seed);
  request.replace = replace;
  const Sample sample = sample_with_table(request, table);
  GOSSAMER_CHECK(sample.valid, "neighbor_sample_compressed: codes must hold columns in [0, num_nodes)");
  return pack(sample);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("neighbor_sample_compressed", TORCH_BOX(&neighbor_sample_compressed_cpu));
}

}  // namespace gossamer
