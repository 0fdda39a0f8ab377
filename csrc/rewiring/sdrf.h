// Stochastic discrete Ricci flow: again and again an edge is added that supports the edge of least curvature.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common/random.h"
#include "rewiring/curvature.h"
#include "rewiring/simple_graph.h"

namespace gossamer::rewiring {

using Edge = std::pair<int32_t, int32_t>;

class RicciFlow {
 public:
  // The values of `graph` are the curvatures of its edges, and stay so.
  RicciFlow(ChangingGraph graph, double tau, uint64_t seed)
      : graph_(std::move(graph)), space_(graph_.num_nodes()), tau_(tau), seed_(seed) {}

  // One iteration; returns whether anything changed. Where `bound` is given, the edge of largest curvature goes if that
  // is above it.
  bool step(int64_t iteration, std::optional<double> bound) {
    const bool added = add_edge(iteration);
    return (bound.has_value() && remove_edge(*bound)) || added;
  }

  const ChangingGraph& graph() const { return graph_; }

 private:
  bool add_edge(int64_t iteration) {
    const auto weakest = extreme_edge([](double a, double b) { return a < b; });
    if (!weakest) return false;
    const auto [i, j] = *weakest;
    candidates_.clear();
    gains_.clear();
    const std::vector<int32_t> ends_i = ball(i), ends_j = ball(j);
    for (const int32_t k : ends_i) {
      for (const int32_t l : ends_j) {
        if (k == l || graph_.has(k, l)) continue;
        graph_.add(k, l);
        gains_.push_back(space_.curvature(graph_, i, j));
        graph_.remove(k, l);
        candidates_.emplace_back(k, l);
      }
    }
    if (candidates_.empty()) return false;
    const auto [k, l] = candidates_[choose(iteration)];
    graph_.add(k, l);
    renew_curvatures(k, l);
    return true;
  }

  bool remove_edge(double bound) {
    const auto strongest = extreme_edge([](double a, double b) { return a > b; });
    if (!strongest) return false;
    const auto [i, j] = *strongest;
    if (space_.curvature(graph_, i, j) <= bound) return false;
    graph_.remove(i, j);
    renew_curvatures(i, j);
    return true;
  }

  // The first edge i < j whose value none other beats.
  template <typename Beats>
  std::optional<Edge> extreme_edge(const Beats& beats) const {
    std::optional<Edge> best;
    double value = 0;
    for (int32_t i = 0; i < graph_.num_nodes(); ++i) {
      const auto& row = graph_.neighbors(i);
      for (size_t e = 0; e < row.size(); ++e) {
        if (row[e] < i || (best && !beats(graph_.values(i)[e], value))) continue;
        best = Edge(i, row[e]);
        value = graph_.values(i)[e];
      }
    }
    return best;
  }

  std::vector<int32_t> ball(int32_t center) const {
    std::vector<int32_t> nodes = {center};
    nodes.insert(nodes.end(), graph_.neighbors(center).begin(), graph_.neighbors(center).end());
    return nodes;
  }

  // Draws from softmax(tau * gain); the first of the best where tau is infinite. A constant in all gains cancels.
  size_t choose(int64_t iteration) {
    const size_t best = std::max_element(gains_.begin(), gains_.end()) - gains_.begin();
    if (std::isinf(tau_)) return best;
    double total = 0;
    const double top = gains_[best];
    for (double& gain : gains_) gain = total += std::exp(tau_ * (gain - top));
    const double draw = Random(seed_, static_cast<uint64_t>(iteration), 0).uniform() * total;
    const size_t at = std::upper_bound(gains_.begin(), gains_.end(), draw) - gains_.begin();
    return std::min(at, gains_.size() - 1);
  }

  // The edge k - l has come or gone. That concerns the edges at its ends, by their degrees and triangles, and those
  // between a neighbour of k and one of l, by their squares.
  void renew_curvatures(int32_t k, int32_t l) {
    for (const int32_t end : {k, l}) {
      for (const int32_t v : graph_.neighbors(end)) renew(end, v);
    }
    for (const int32_t a : graph_.neighbors(k)) {
      for (const int32_t b : graph_.neighbors(l)) {
        if (a != b && graph_.has(a, b)) renew(a, b);
      }
    }
  }

  void renew(int32_t i, int32_t j) { graph_.set_value(i, j, space_.curvature(graph_, i, j)); }

  ChangingGraph graph_;
  CurvatureSpace space_;
  double tau_;
  uint64_t seed_;
  std::vector<Edge> candidates_;
  std::vector<double> gains_;
};

}  // namespace gossamer::rewiring
