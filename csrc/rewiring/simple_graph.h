// Simple undirected graphs for the rewiring baselines: every edge stands in the rows of both its ends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace gossamer::rewiring {

// Rows of a CSR, sorted.
struct SimpleRows {
  const int64_t* rowptr;
  const int32_t* col;

  int64_t degree(int32_t v) const { return rowptr[v + 1] - rowptr[v]; }
  std::span<const int32_t> neighbors(int32_t v) const { return {col + rowptr[v], col + rowptr[v + 1]}; }
};

// Whether the rows are those of a simple undirected graph: sorted, in range, no loops, every edge in both rows.
inline bool is_simple(const SimpleRows& rows, int64_t num_nodes, int64_t num_entries) {
  if (rows.rowptr[0] != 0 || rows.rowptr[num_nodes] != num_entries) return false;
  for (int64_t v = 0; v < num_nodes; ++v) {
    if (rows.rowptr[v] > rows.rowptr[v + 1] || rows.rowptr[v + 1] > num_entries) return false;
  }
  for (int32_t v = 0; v < num_nodes; ++v) {
    int32_t last = -1;
    for (const int32_t u : rows.neighbors(v)) {
      if (u <= last || u == v || u >= num_nodes) return false;
      last = u;
    }
  }
  for (int32_t v = 0; v < num_nodes; ++v) {
    for (const int32_t u : rows.neighbors(v)) {
      const auto row = rows.neighbors(u);
      if (!std::binary_search(row.begin(), row.end(), v)) return false;
    }
  }
  return true;
}

// A graph that grows and shrinks, with a value per edge, equal in both rows.
class ChangingGraph {
 public:
  ChangingGraph(const SimpleRows& rows, const double* values, int64_t num_nodes)
      : neighbors_(num_nodes), values_(num_nodes) {
    for (int32_t v = 0; v < num_nodes; ++v) {
      const auto row = rows.neighbors(v);
      neighbors_[v].assign(row.begin(), row.end());
      values_[v].assign(values + rows.rowptr[v], values + rows.rowptr[v + 1]);
    }
  }

  int64_t num_nodes() const { return static_cast<int64_t>(neighbors_.size()); }
  int64_t degree(int32_t v) const { return static_cast<int64_t>(neighbors_[v].size()); }
  const std::vector<int32_t>& neighbors(int32_t v) const { return neighbors_[v]; }
  const std::vector<double>& values(int32_t v) const { return values_[v]; }
  bool has(int32_t i, int32_t j) const { return std::binary_search(neighbors_[i].begin(), neighbors_[i].end(), j); }

  void add(int32_t i, int32_t j) {
    add_entry(i, j);
    add_entry(j, i);
  }
  void remove(int32_t i, int32_t j) {
    remove_entry(i, j);
    remove_entry(j, i);
  }
  void set_value(int32_t i, int32_t j, double value) {
    values_[i][place(i, j)] = value;
    values_[j][place(j, i)] = value;
  }

 private:
  int64_t place(int32_t i, int32_t j) const {
    return std::lower_bound(neighbors_[i].begin(), neighbors_[i].end(), j) - neighbors_[i].begin();
  }
  void add_entry(int32_t i, int32_t j) {
    const int64_t at = place(i, j);
    neighbors_[i].insert(neighbors_[i].begin() + at, j);
    values_[i].insert(values_[i].begin() + at, 0.0);
  }
  void remove_entry(int32_t i, int32_t j) {
    const int64_t at = place(i, j);
    neighbors_[i].erase(neighbors_[i].begin() + at);
    values_[i].erase(values_[i].begin() + at);
  }

  std::vector<std::vector<int32_t>> neighbors_;
  std::vector<std::vector<double>> values_;
};

}  // namespace gossamer::rewiring
