// First-order spectral rewiring: again and again the missing edge is added that widens the spectral gap most, to first
// order. That change is 2 y_i y_j with y = x / sqrt(1 + degree) and x the second eigenvector of the normalised
// adjacency, followed by power iteration.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "common/random.h"
#include "rewiring/simple_graph.h"

namespace gossamer::rewiring {

class SpectralRewiring {
 public:
  SpectralRewiring(const SimpleRows& rows, int64_t num_nodes, uint64_t seed)
      : rows_(rows),
        more_(num_nodes),
        degree_(num_nodes),
        root_(num_nodes),
        next_root_(num_nodes),
        x_(num_nodes),
        scaled_(num_nodes) {
    for (int64_t v = 0; v < num_nodes; ++v) {
      set_degree(v, static_cast<double>(rows.degree(static_cast<int32_t>(v))));
      x_[v] = 2 * Random(seed, 0, static_cast<uint64_t>(v)).uniform() - 1;
    }
  }

  // x <- (I + D^-1/2 A D^-1/2) (x without its part along sqrt(degree)), of length 1. Nodes without edges stay put.
  void iterate() {
    double along = 0, total = 0;
    for (size_t v = 0; v < x_.size(); ++v) {
      along += x_[v] * root_[v];
      total += degree_[v];
    }
    for (size_t v = 0; v < x_.size(); ++v) {
      if (total > 0) x_[v] -= along / total * root_[v];
      scaled_[v] = degree_[v] > 0 ? x_[v] / root_[v] : 0.0;
    }
    double square = 0;
    for (size_t v = 0; v < x_.size(); ++v) {
      double sum = 0;
      for (const int32_t u : rows_.neighbors(static_cast<int32_t>(v))) sum += scaled_[u];
      for (const int32_t u : more_[v]) sum += scaled_[u];
      if (degree_[v] > 0) x_[v] += sum / root_[v];
      square += x_[v] * x_[v];
    }
    const double scale = square > 0 ? 1 / std::sqrt(square) : 0.0;
    for (double& value : x_) value *= scale;
  }

  // Adds the missing edge with the smallest y_i y_j; none where no missing edge has a negative product.
  std::optional<std::pair<int32_t, int32_t>> add_edge() {
    const auto edge = best_missing_edge();
    if (edge) {
      more_[edge->first].push_back(edge->second);
      more_[edge->second].push_back(edge->first);
      for (const int32_t v : {edge->first, edge->second}) set_degree(v, degree_[v] + 1);
    }
    return edge;
  }

 private:
  using Value = std::pair<double, int32_t>;  // y, node

  // Values in ascending order, sorted only as far as they are asked for.
  struct Ascending {
    std::vector<Value> heap, sorted;

    void start() {
      sorted.clear();
      std::make_heap(heap.begin(), heap.end(), std::greater<>());
    }
    const Value* at(size_t place) {
      while (sorted.size() <= place && !heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        sorted.push_back(heap.back());
        heap.pop_back();
      }
      return place < sorted.size() ? &sorted[place] : nullptr;
    }
  };

  void set_degree(int64_t v, double degree) {
    degree_[v] = degree;
    root_[v] = std::sqrt(degree);
    next_root_[v] = std::sqrt(1 + degree);
  }

  // Pairs of a negative and a positive y, smallest product first: a heap holds the next pair of every started row.
  std::optional<std::pair<int32_t, int32_t>> best_missing_edge() {
    negative_.heap.clear();
    positive_.heap.clear();
    for (size_t v = 0; v < x_.size(); ++v) {
      const double y = x_[v] / next_root_[v];
      if (y < 0) negative_.heap.emplace_back(y, static_cast<int32_t>(v));
      if (y > 0) positive_.heap.emplace_back(-y, static_cast<int32_t>(v));
    }
    negative_.start();
    positive_.start();
    using Next = std::tuple<double, size_t, size_t>;  // product, places in negative_ and positive_
    std::priority_queue<Next, std::vector<Next>, std::greater<>> next;
    const auto push = [&](size_t a, size_t b) {
      const Value* low = negative_.at(a);
      const Value* high = positive_.at(b);
      if (low != nullptr && high != nullptr) next.emplace(-low->first * high->first, a, b);
    };
    for (push(0, 0); !next.empty();) {
      const auto [product, a, b] = next.top();
      next.pop();
      const auto ends = std::minmax(negative_.sorted[a].second, positive_.sorted[b].second);
      if (!has(ends.first, ends.second)) return std::pair<int32_t, int32_t>(ends);
      push(a, b + 1);
      if (b == 0) push(a + 1, 0);
    }
    return std::nullopt;
  }

  bool has(int32_t i, int32_t j) const {
    const auto row = rows_.neighbors(i);
    return std::binary_search(row.begin(), row.end(), j) ||
           std::find(more_[i].begin(), more_[i].end(), j) != more_[i].end();
  }

  SimpleRows rows_;
  std::vector<std::vector<int32_t>> more_;         // the edges that were added
  std::vector<double> degree_, root_, next_root_;  // sqrt(degree) and sqrt(1 + degree) with it
  std::vector<double> x_, scaled_;
  Ascending negative_, positive_;
};

}  // namespace gossamer::rewiring
