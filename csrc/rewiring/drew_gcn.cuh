// What the CUDA versions of drew_gcn and drew_gcn_backward share: one hop after the other, each in a few plain kernels.
// Every sum has a fixed order, so that every run gives the same bits.
#pragma once

#include "rewiring/drew_gcn_stack.h"
#include "segment/rows.cuh"

namespace gossamer {

constexpr int kTile = 16;           // of a product: rows and columns of a thread block
constexpr int64_t kPartRows = 512;  // rows whose sums are kept together

inline int64_t num_parts(int64_t rows) { return std::max<int64_t>((rows + kPartRows - 1) / kPartRows, 1); }

// The norm of one hop. Vectors have num_features elements.
template <typename scalar_t>
struct HopNorm {
  const scalar_t* mean;
  const scalar_t* var;
  const scalar_t* gamma;
  const scalar_t* beta;
  const scalar_t* hop_weight;  // one element, or null for 1
  double eps;

  __device__ double deviation(int64_t f) const { return sqrt(static_cast<double>(var[f]) + eps); }
  __device__ scalar_t normed(scalar_t message, int64_t f) const {
    return (message - mean[f]) * static_cast<scalar_t>(gamma[f] / deviation(f)) + beta[f];
  }
  __device__ scalar_t share() const { return hop_weight ? *hop_weight : scalar_t(1); }
};

// out[i] = scale[i] * (sum over edges of row i of scale[j] * x[j] + scale[i] * x[i]), the last term with self loops;
// `scaled`: x has the inner scales already.
template <typename scalar_t, typename index_t>
__global__ void gather_kernel(const int64_t* __restrict__ rowptr, const index_t* __restrict__ col,
                              const scalar_t* __restrict__ scale, const scalar_t* __restrict__ x, bool self_loops,
                              bool scaled, int64_t num_nodes, int64_t num_features, scalar_t* __restrict__ out) {
  for (int64_t row = first_row(); row < num_nodes; row += row_stride()) {
    for (int64_t f = lane_id(); f < num_features; f += kLanes) {
      const auto term = [&](int64_t j) { return (scaled ? scalar_t(1) : scale[j]) * x[j * num_features + f]; };
      scalar_t sum = self_loops ? term(row) : scalar_t(0);
      for (int64_t e = rowptr[row]; e < rowptr[row + 1]; ++e) sum += term(col[e]);
      out[row * num_features + f] = scale[row] * sum;
    }
  }
}

// A matrix by its strides.
template <typename scalar_t>
struct Strided {
  const scalar_t* data;
  int64_t row;
  int64_t column;
  __device__ scalar_t at(int64_t r, int64_t c) const { return data[r * row + c * column]; }
};

// c[z] [rows, columns] (+)= a[:, part z] b[part z, :], where part z is [z, z + 1) * part_depth of the depth.
template <typename scalar_t>
__global__ void product_kernel(Strided<scalar_t> a, Strided<scalar_t> b, int64_t rows, int64_t columns, int64_t depth,
                               int64_t part_depth, bool add, scalar_t* __restrict__ c) {
  __shared__ scalar_t left[kTile][kTile + 1], right[kTile][kTile + 1];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.y;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile + threadIdx.x;
  const int64_t begin = blockIdx.z * part_depth, end = min(begin + part_depth, depth);
  scalar_t sum = 0;
  for (int64_t n = begin; n < end; n += kTile) {
    left[threadIdx.y][threadIdx.x] = row < rows && n + threadIdx.x < end ? a.at(row, n + threadIdx.x) : scalar_t(0);
    right[threadIdx.y][threadIdx.x] =
        n + threadIdx.y < end && column < columns ? b.at(n + threadIdx.y, column) : scalar_t(0);
    __syncthreads();
    for (int i = 0; i < kTile; ++i) sum += left[threadIdx.y][i] * right[i][threadIdx.x];
    __syncthreads();
  }
  if (row >= rows || column >= columns) return;
  scalar_t* out = c + (blockIdx.z * rows + row) * columns + column;
  *out = add ? *out + sum : sum;
}

template <typename scalar_t>
void product(Strided<scalar_t> a, Strided<scalar_t> b, int64_t rows, int64_t columns, int64_t depth, int64_t part_depth,
             bool add, scalar_t* c, cudaStream_t stream) {
  const auto tiles = [](int64_t n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
  const auto parts = static_cast<unsigned>((depth + part_depth - 1) / part_depth);
  const dim3 grid(tiles(rows), tiles(columns), std::max(parts, 1u));
  product_kernel<<<grid, dim3(kTile, kTile), 0, stream>>>(a, b, rows, columns, depth, part_depth, add, c);
}

// sums [num_parts, 2, num_features]: of value(row, f), a pair, over the rows of a part. A thread block has 32 features.
template <typename Value>
__global__ void column_sums_kernel(const Value value, int64_t num_nodes, int64_t num_features, double* sums) {
  __shared__ double shared[2][kWarpsPerBlock][kLanes];
  const int64_t f = static_cast<int64_t>(blockIdx.y) * kLanes + lane_id();
  const int64_t begin = blockIdx.x * kPartRows, end = min(begin + kPartRows, num_nodes);
  const int warp = threadIdx.x / kLanes;
  double first = 0, second = 0;
  for (int64_t row = begin + warp; f < num_features && row < end; row += kWarpsPerBlock) {
    const auto [a, b] = value(row, f);
    first += a;
    second += b;
  }
  shared[0][warp][lane_id()] = first;
  shared[1][warp][lane_id()] = second;
  __syncthreads();
  if (warp > 1 || f >= num_features) return;
  double total = 0;
  for (int w = 0; w < kWarpsPerBlock; ++w) total += shared[warp][w][lane_id()];
  sums[(blockIdx.x * 2 + warp) * num_features + f] = total;
}

// out[i] = finish(sum of parts[:, i]) over the parts, in their order.
template <typename in_t, typename Finish>
__global__ void sum_parts_kernel(const in_t* __restrict__ parts, int64_t count, int64_t size, const Finish finish) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  in_t total = 0;
  for (int64_t part = 0; part < count; ++part) total += parts[part * size + i];
  finish(i, total);
}

// total[i] = x[i] + share * relu(normed message); x may be total.
template <typename scalar_t>
__global__ void add_hop_kernel(const HopNorm<scalar_t> norm, const scalar_t* message, const scalar_t* x, int64_t size,
                               int64_t num_features, scalar_t* total) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const scalar_t y = norm.normed(message[i], i % num_features);
    total[i] = x[i] + norm.share() * (y < 0 ? scalar_t(0) : y);  // NaN stays NaN
  }
}

// A stack on the device: what a hop needs besides the message.
template <typename scalar_t, typename index_t>
struct DeviceStack {
  const DrewPlan& plan;
  const Tensors& scale;
  const scalar_t* weight;
  const scalar_t* gamma;
  const scalar_t* beta;
  const scalar_t* hop_weight;
  const scalar_t* mean;
  const scalar_t* var;
  double eps;
  bool self_loops;
  int64_t num_nodes;
  int64_t num_features;
  scalar_t* gathered;  // [num_nodes, num_features]
  cudaStream_t stream;

  int64_t size() const { return num_nodes * num_features; }
  HopNorm<scalar_t> norm(int64_t p) const {
    const int64_t at = p * num_features;
    return {mean + at, var + at, gamma + at, beta + at, hop_weight ? hop_weight + p : nullptr, eps};
  }

  // S x of hop p, along graphs with its nodes: x itself where it has no shell.
  const scalar_t* gather(int64_t p, const Tensors& rowptr, const Tensors& col, const scalar_t* x, bool scaled) const {
    const int64_t k = plan.shell[p];
    if (k < 0) return x;
    gather_kernel<<<num_blocks(num_nodes, kWarpsPerBlock), kThreads, 0, stream>>>(
        rowptr[k].template const_data_ptr<int64_t>(), col[k].template const_data_ptr<index_t>(),
        scale[k].template const_data_ptr<scalar_t>(), x, self_loops, scaled, num_nodes, num_features, gathered);
    return gathered;
  }

  // message = S state weight^T
  void message(int64_t p, const Tensors& rowptr, const Tensors& col, const scalar_t* states, scalar_t* out) const {
    const scalar_t* sums = gather(p, rowptr, col, states + plan.state[p] * size(), false);
    const scalar_t* w = weight + p * num_features * num_features;
    product<scalar_t>({sums, num_features, 1}, {w, 1, num_features}, num_nodes, num_features, num_features,
                      num_features, false, out, stream);
  }

  template <typename Value, typename Finish>
  void column_sums(const Value& value, double* parts, const Finish& finish) const {
    const int64_t count = num_parts(num_nodes);
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>((num_features + kLanes - 1) / kLanes));
    column_sums_kernel<<<grid, kThreads, 0, stream>>>(value, num_nodes, num_features, parts);
    sum_parts_kernel<<<num_blocks(2 * num_features, kThreads), kThreads, 0, stream>>>(parts, count, 2 * num_features,
                                                                                      finish);
  }
};

}  // namespace gossamer
