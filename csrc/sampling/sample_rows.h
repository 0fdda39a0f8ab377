// The operators sample_bounds and sample_rows, given what runs a function of the target's number for every target: what
// CPU and CUDA share.
#pragma once

#include <string>
#include <tuple>

#include "sampling/relation_tensors.h"
#include "sampling/sample_row.h"

namespace gossamer::sampling {

// Targets, the tree of each and the times of the trees; without times, or without trees, in one for all.
struct Targets {
  Tensor target;
  OptionalTensor tree, seed_time;

  // A job with these targets and trees; `window` is -1 for none.
  RowsJob job(const Relation& relation, bool replace, int64_t window, const char* function) const {
    GOSSAMER_CHECK(!tree || tree->numel() == target.numel(), function, ": tree must have one entry per target");
    GOSSAMER_CHECK(!seed_time || (tree && relation.time), function, ": tree and time must be given for seed_time");
    RowsJob job{};
    job.from = relation;
    job.target = checked_vector(target, function);
    job.rules.tree = tree ? checked_vector(*tree, function) : nullptr;
    job.rules.seed_time = seed_time ? checked_vector(*seed_time, function) : nullptr;
    job.rules.window = window;
    job.rules.replace = replace;
    return job;
  }
};

inline const Tensor* pointer_to(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

// run(job, bounds, num_targets) writes job.bound(i) to bounds[i].
template <typename Run>
Tensor sample_bounds(const Tensor& rowptr, const OptionalTensor& time, const Targets& targets, double fanout,
                     bool replace, int64_t window, const Run& run) {
  Relation relation;
  relation.rows = row_pointers(rowptr, "sample_bounds");
  relation.time = time ? checked_vector(*time, "sample_bounds") : nullptr;
  relation.fanout = fanout;
  const int64_t num_targets = targets.target.numel();
  Tensor bounds = allocate(targets.target, {num_targets});
  const RowsJob job = targets.job(relation, replace, window, "sample_bounds");
  if (num_targets > 0) run(job, bounds.mutable_data_ptr<int64_t>(), num_targets);
  return bounds;
}

// Source and edge, each [num_edges]. run(job, num_targets) calls job.sample(i) for every target.
template <typename Run>
std::tuple<Tensor, Tensor> sample_rows(const Relation& relation, const Targets& targets, const Tensor& offsets,
                                       int64_t num_edges, int64_t seed, int64_t stream, bool replace,
                                       const std::string& temporal, int64_t window, const Run& run) {
  const int64_t num_targets = targets.target.numel();
  GOSSAMER_CHECK(offsets.numel() == num_targets + 1, "sample_rows: offsets must have one entry more than targets");
  Tensor source = allocate(targets.target, {num_edges});
  Tensor edge = allocate(targets.target, {num_edges});
  RowsJob job = targets.job(relation, replace, window, "sample_rows");
  job.rules.seed = static_cast<uint64_t>(seed);
  job.rules.stream = static_cast<uint64_t>(stream);
  job.rules.temporal = temporal_of(temporal);
  job.offsets = checked_vector(offsets, "sample_rows");
  job.source = source.mutable_data_ptr<int64_t>();
  job.edge = edge.mutable_data_ptr<int64_t>();
  if (num_edges > 0) run(job, num_targets);
  return {source, edge};
}

}  // namespace gossamer::sampling
