// Balanced Forman curvature of an edge of a simple undirected graph, of which `neighbors(v)` is a range of ids:
//   ric(i, j) = 2 / d_i + 2 / d_j - 2 + 2 t / max(d_i, d_j) + t / min(d_i, d_j) + (s_i + s_j) / (g max(d_i, d_j))
// and 0 where an end has no other neighbour. t is the number of triangles on the edge. A square i - k - w - j has no
// diagonal: k is no neighbour of j, w none of i. s_i and s_j are the numbers of different k and w, g the most squares
// through one of them; without squares the last term is 0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace gossamer::rewiring {

// The same work space serves any number of edges.
class CurvatureSpace {
 public:
  explicit CurvatureSpace(int64_t num_nodes) : near_i_(num_nodes, -1), near_j_(num_nodes, -1), squares_(num_nodes, 0) {}

  template <typename Graph>
  double curvature(const Graph& graph, int32_t i, int32_t j) {
    const double degree_i = static_cast<double>(graph.degree(i)), degree_j = static_cast<double>(graph.degree(j));
    const double most = std::max(degree_i, degree_j), least = std::min(degree_i, degree_j);
    if (least < 2) return 0.0;
    ++edge_;
    for (const int32_t k : graph.neighbors(i)) near_i_[k] = edge_;
    int64_t triangles = 0;
    for (const int32_t w : graph.neighbors(j)) {
      near_j_[w] = edge_;
      triangles += near_i_[w] == edge_;
    }
    int64_t corners = 0, busiest = 0;
    for (const int32_t k : graph.neighbors(i)) {
      if (k == j || near_j_[k] == edge_) continue;
      const int64_t squares = squares_through(graph, i, k);
      corners += squares > 0;
      busiest = std::max(busiest, squares);
    }
    for (const int32_t w : others_) {
      busiest = std::max(busiest, squares_[w]);
      squares_[w] = 0;
    }
    corners += static_cast<int64_t>(others_.size());
    others_.clear();
    const double flat = 2 / most + 2 / least - 2 + 2 * triangles / most + triangles / least;
    return corners == 0 ? flat : flat + corners / (busiest * most);
  }

 private:
  template <typename Graph>
  int64_t squares_through(const Graph& graph, int32_t i, int32_t k) {
    int64_t squares = 0;
    for (const int32_t w : graph.neighbors(k)) {
      if (near_j_[w] != edge_ || near_i_[w] == edge_ || w == i) continue;
      ++squares;
      if (squares_[w]++ == 0) others_.push_back(w);
    }
    return squares;
  }

  int64_t edge_ = -1;                     // number of the edge at hand
  std::vector<int64_t> near_i_, near_j_;  // the last edge whose end had this neighbour
  std::vector<int64_t> squares_;          // per w: squares through it
  std::vector<int32_t> others_;           // every w with a square
};

}  // namespace gossamer::rewiring
