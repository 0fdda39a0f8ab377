// What the operators that sample share of torch: its threads, the table of local ids, and the tensors of a result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/tensor.h"
#include "sampling/block.h"

namespace gossamer::sampling {

// Runs its argument on every thread that torch would use.
struct Parallel {
  template <typename Worker>
  void operator()(const Worker& worker) const {
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) worker();
    });
  }
};

// Calls sample(entries, base) with the table that is kept between calls; its last entry is the base of the next call.
template <typename SampleWith>
Sample sample_with_table(Tensor& table, int64_t num_nodes, const char* function, const SampleWith& sample_with) {
  constexpr uint32_t kLargestBase = uint32_t{1} << 31;  // local ids must fit between it and the end of 32 bits
  GOSSAMER_CHECK(table.dim() == 1 && table.is_contiguous() && table.numel() == num_nodes + 1, function,
                 ": table must have one entry per node and one more, got ", table.numel());
  uint32_t* entries = reinterpret_cast<uint32_t*>(table.mutable_data_ptr<int32_t>());
  uint32_t& next_base = entries[num_nodes];
  if (next_base == 0 || next_base > kLargestBase) {
    std::memset(entries, 0, table.numel() * sizeof(uint32_t));
    next_base = 1;
  }
  Sample sample = sample_with(entries, next_base);
  size_t largest = 0;
  for (const auto& nodes : sample.node) largest = std::max(largest, nodes.size());
  next_base += static_cast<uint32_t>(largest);
  return sample;
}

inline Tensor new_vector(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

inline Tensor to_tensor(const std::vector<int64_t>& values) {
  Tensor tensor = new_vector(static_cast<int64_t>(values.size()));
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr<int64_t>(), values.data(), values.size() * sizeof(int64_t));
  return tensor;
}

struct EdgeOutput {
  int64_t* row;
  int64_t* col;
  int64_t* edge;
};

inline void write_block(const Block& block, const EdgeOutput& out) {
  std::copy_n(block.source.get(), block.size, out.row);
  std::copy_n(block.edge.get(), block.size, out.edge);
  int64_t* col = out.col;
  for (size_t i = 0; i < block.count.size(); ++i) {
    col = std::fill_n(col, block.count[i], block.first_target + static_cast<int64_t>(i));
  }
}

// Appends row, col and edge of every relation, each of the exact size.
inline void append_edges(const Sample& sample, std::vector<Tensor>& out) {
  std::vector<EdgeOutput> next;
  for (const std::vector<int64_t>& hops : sample.num_edges) {
    int64_t size = 0;
    for (const int64_t n : hops) size += n;
    int64_t* data[3];
    for (int64_t*& d : data) {
      out.push_back(new_vector(size));
      d = out.back().mutable_data_ptr<int64_t>();
    }
    next.push_back({data[0], data[1], data[2]});
  }
  std::vector<EdgeOutput> places;
  for (const Block& block : sample.blocks) {
    EdgeOutput& place = next[block.relation];
    places.push_back(place);
    place = {place.row + block.size, place.col + block.size, place.edge + block.size};
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(places.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_block(sample.blocks[i], places[i]);
  });
}

// node (and batch) of each type, then row, col and edge of each relation, then the counts of nodes and of edges per
// hop.
inline std::vector<Tensor> pack(const Sample& sample) {
  std::vector<Tensor> out;
  for (size_t type = 0; type < sample.node.size(); ++type) {
    out.push_back(to_tensor(sample.node[type]));
    if (!sample.batch.empty()) out.push_back(to_tensor(sample.batch[type]));
  }
  append_edges(sample, out);
  for (const auto& counts : sample.num_nodes) out.push_back(to_tensor(counts));
  for (const auto& counts : sample.num_edges) out.push_back(to_tensor(counts));
  return out;
}

}  // namespace gossamer::sampling
