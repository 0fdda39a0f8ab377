// Blocks of compressed rows for sample_shared, uniformly: the same choices as of plain rows.
#pragma once

#include "sampling/elias_fano.h"
#include "sampling/sample_shared.h"

namespace gossamer::sampling {

// PlainRows for compressed rows.
class CodedRows {
 public:
  CodedRows(const Request& request, const CompressedRows& rows, ReadColumns read_columns)
      : request_(request), from_(rows), sampler_(request.replace, Temporal::kUniform), reader_(read_columns) {}

  bool operator()(const Relation& relation, const int64_t* targets, uint64_t stream, Block& block) {
    const int64_t num_targets = static_cast<int64_t>(block.count.size());
    std::vector<Row> rows(num_targets);
    std::vector<const uint8_t*> codes(num_targets);
    int64_t bound = 0;
    for (int64_t i = 0; i < num_targets; ++i) {
      if (i + kPrefetchAhead < num_targets) from_.prefetch(targets[i + kPrefetchAhead]);
      rows[i] = from_.row(targets[i]);
      codes[i] = from_.code(targets[i]);
      __builtin_prefetch(codes[i]);
      bound += sampler_.bound(relation, rows[i]);
    }
    block.edge = std::make_unique_for_overwrite<int64_t[]>(bound);
    block.source = std::make_unique_for_overwrite<int64_t[]>(bound);
    std::vector<int64_t> begin(num_targets + 1);  // of each row in the block
    bool valid = true;
    for (int64_t i = 0; i < num_targets + kRowsAhead; ++i) {
      if (i < num_targets) {
        int64_t* const position = block.edge.get() + begin[i];
        const Random random(request_.seed, stream, targets[i]);
        const int64_t count = sampler_.sample(i, relation, rows[i], rows[i], random, position);
        reader_.prefetch(codes[i], rows[i], from_.num_nodes, position, count);
        block.count[i] = static_cast<uint32_t>(count);
        begin[i + 1] = begin[i] + count;
      }
      const int64_t r = i - kRowsAhead;  // the row to be read: what it needs has been asked for
      if (r < 0 || block.count[r] == 0) continue;
      int64_t* const source = block.source.get() + begin[r];
      reader_.read(codes[r], rows[r], from_.num_nodes, block.edge.get() + begin[r], block.count[r], source);
      for (uint32_t j = 0; j < block.count[r]; ++j)
        valid &= static_cast<uint64_t>(source[j]) < static_cast<uint64_t>(from_.num_nodes);
    }
    block.size = begin[num_targets];
    return valid;
  }

 private:
  const Request& request_;
  const CompressedRows& from_;
  RowSampler sampler_;
  RowReader reader_;
};

}  // namespace gossamer::sampling
