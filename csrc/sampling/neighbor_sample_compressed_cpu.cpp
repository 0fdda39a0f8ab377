#include <utility>
#include <vector>

#include "common/tensor.h"
#include "sampling/sample_compressed.h"
#include "sampling/sample_tensors.h"

#define GOSSAMER_KERNEL "sampling/read_columns.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

using namespace sampling;

std::vector<Tensor> neighbor_sample_compressed_cpu(const Tensor& codes, const Tensor& offsets, const Tensor& positions,
                                                   const Tensor& bases, const Tensor& seeds,
                                                   std::vector<double> fanouts, int64_t seed, bool replace,
                                                   Tensor table) {
  for (const Tensor& tensor : {codes, offsets, positions, bases, seeds}) {
    GOSSAMER_CHECK_TENSOR(tensor, 1, "neighbor_sample_compressed");
  }
  const CompressedRows rows{codes.const_data_ptr<uint8_t>(), offsets.const_data_ptr<int64_t>(),
                            reinterpret_cast<const uint32_t*>(positions.const_data_ptr<int32_t>()),
                            bases.const_data_ptr<int64_t>(), positions.numel() - 1};
  const int64_t* first = seeds.const_data_ptr<int64_t>();
  Request request;
  request.relations.resize(1);
  request.num_nodes = {rows.num_nodes};
  request.seeds = {std::vector<int64_t>(first, first + seeds.numel())};
  for (const int64_t node : request.seeds[0]) {
    GOSSAMER_CHECK(0 <= node && node < rows.num_nodes,
                   "neighbor_sample_compressed: seeds must be in [0, num_nodes), got ", node);
  }
  request.num_hops = static_cast<int64_t>(fanouts.size());
  request.fanouts = std::move(fanouts);
  request.seed = static_cast<uint64_t>(seed);
  request.replace = replace;
  const ReadColumns read = GOSSAMER_SELECT_ISA(read_columns);
  constexpr auto kName = "neighbor_sample_compressed";
  const Sample sample = sample_with_table(table, rows.num_nodes, kName, [&](uint32_t* entries, uint32_t base) {
    return sample_shared(request, entries, base, Parallel{}, [&] { return CodedRows(request, rows, read); });
  });
  GOSSAMER_CHECK(sample.valid, "neighbor_sample_compressed: codes must hold columns in [0, num_nodes)");
  return pack(sample);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("neighbor_sample_compressed", TORCH_BOX(&neighbor_sample_compressed_cpu));
}

}  // namespace gossamer
