// sample_shared for one relation of compressed rows, uniformly: the same choices, ids and order.
#pragma once

#include "sampling/elias_fano.h"
#include "sampling/sample_shared.h"

namespace gossamer::sampling {

struct CompressedRequest {
  CompressedRows rows;
  ReadColumns read_columns;
  std::vector<int64_t> seeds;
  std::vector<double> fanouts;
  uint64_t seed = 0;
  bool replace = false;
};

// sample_block for compressed rows.
inline bool sample_compressed_block(const CompressedRequest& request, double fanout, uint64_t stream,
                                    RowSampler& sampler, RowReader& reader, const int64_t* targets, Block& block) {
  const int64_t num_targets = static_cast<int64_t>(block.count.size());
  const CompressedRows& from = request.rows;
  std::vector<Row> rows(num_targets);
  std::vector<const uint8_t*> codes(num_targets);
  Relation relation;
  relation.fanout = fanout;
  int64_t bound = 0;
  for (int64_t i = 0; i < num_targets; ++i) {
    if (i + kPrefetchAhead < num_targets) from.prefetch(targets[i + kPrefetchAhead]);
    rows[i] = from.row(targets[i]);
    codes[i] = from.code(targets[i]);
    __builtin_prefetch(codes[i]);
    bound += sampler.bound(relation, rows[i]);
  }
  block.position = std::make_unique_for_overwrite<int64_t[]>(bound);
  block.source = std::make_unique_for_overwrite<int64_t[]>(bound);
  std::vector<int64_t> begin(num_targets + 1);  // of each row in the block
  bool valid = true;
  for (int64_t i = 0; i < num_targets + kRowsAhead; ++i) {
    if (i < num_targets) {
      int64_t* const position = block.position.get() + begin[i];
      const Random random(request.seed, stream, targets[i]);
      const int64_t count = sampler.sample(relation, rows[i], rows[i], random, position);
      reader.prefetch(codes[i], rows[i], from.num_nodes, position, count);
      block.count[i] = static_cast<uint32_t>(count);
      begin[i + 1] = begin[i] + count;
    }
    const int64_t r = i - kRowsAhead;  // the row to be read: what it needs has been asked for
    if (r < 0 || block.count[r] == 0) continue;
    int64_t* const source = block.source.get() + begin[r];
    reader.read(codes[r], rows[r], from.num_nodes, block.position.get() + begin[r], block.count[r], source);
    for (uint32_t j = 0; j < block.count[r]; ++j)
      valid &= static_cast<uint64_t>(source[j]) < static_cast<uint64_t>(from.num_nodes);
  }
  block.size = begin[num_targets];
  return valid;
}

// One hop from nodes [first, first + targets.size()); appends its blocks, new nodes and counts.
template <typename Parallel>
void sample_compressed_hop(const CompressedRequest& request, int64_t hop, int64_t first,
                           const std::vector<int64_t>& targets, DenseIds& ids, const Parallel& parallel,
                           Sample& sample) {
  std::vector<Block> blocks((targets.size() + kBlockTargets - 1) / kBlockTargets);
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks[b].first_target = first + static_cast<int64_t>(b) * kBlockTargets;
    blocks[b].count.resize(std::min<int64_t>(kBlockTargets, targets.size() - b * kBlockTargets));
  }
  std::atomic<bool> valid{true};
  int64_t num_edges = 0;
  OrderedPipeline pipeline(static_cast<int64_t>(blocks.size()));
  parallel([&] {
    RowSampler sampler(request.replace, Temporal::kUniform);
    RowReader reader(request.read_columns);
    const auto produce = [&](int64_t i) {
      const int64_t* from = targets.data() + blocks[i].first_target - first;
      if (!sample_compressed_block(request, request.fanouts[hop], hop, sampler, reader, from, blocks[i])) valid = false;
    };
    pipeline.run(produce, [&](int64_t i) {
      if (!valid) return;
      ids.relabel(blocks[i].source.get(), blocks[i].size);
      num_edges += blocks[i].size;
    });
  });
  sample.valid = valid;
  sample.num_edges[0].push_back(num_edges);
  for (Block& block : blocks) sample.blocks.push_back(std::move(block));
}

template <typename Parallel>
Sample sample_compressed(const CompressedRequest& request, uint32_t* table, uint32_t base, const Parallel& parallel) {
  Sample sample;
  sample.node = {request.seeds};
  sample.num_nodes.resize(1);
  sample.num_edges.resize(1);
  DenseIds ids(table, base, sample.node[0]);
  ids.add_seeds();
  int64_t begin = 0;
  const int64_t num_hops = static_cast<int64_t>(request.fanouts.size());
  for (int64_t hop = 0; hop <= num_hops && sample.valid; ++hop) {
    const int64_t end = static_cast<int64_t>(sample.node[0].size());
    sample.num_nodes[0].push_back(end - begin);
    if (hop == num_hops) break;
    const std::vector<int64_t> targets(sample.node[0].begin() + begin, sample.node[0].end());
    sample_compressed_hop(request, hop, begin, targets, ids, parallel, sample);
    begin = end;
  }
  return sample;
}

}  // namespace gossamer::sampling
