#include "hashing/plan_routes.cuh"
#include "moe/top_k_gate.cuh"

#include <string>
#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kTokensPerSum = 256;

template <typename scalar_t>
struct GateArgs {
  const scalar_t* logits;
  const scalar_t* bias;
  scalar_t* gates;
  int32_t* expert_ids;
  scalar_t* normalizers;
  int64_t num_tokens;
  int64_t num_experts;
  int64_t k;
  int64_t num_groups;
  int64_t top_groups;
  scalar_t scale;
  Score score;
  bool normalize;
};

// Integers in the order of the numbers, as in top_k.h.
__device__ int32_t key_of(float x) {
  if (x != x) return INT32_MAX;
  const int32_t bits = __float_as_int(x + 0.0f);
  return bits ^ ((bits >> 31) & INT32_MAX);
}

__device__ int64_t key_of(double x) {
  if (x != x) return INT64_MAX;
  const int64_t bits = __double_as_longlong(x + 0.0);
  return bits ^ ((bits >> 63) & INT64_MAX);
}

// What chooses an expert of one token.
template <typename scalar_t>
struct Choice {
  const GateArgs<scalar_t>& args;
  const scalar_t* logits;
  scalar_t highest;
  scalar_t factor;   // one over the sum for softmax, else 1
  const bool* kept;  // groups in the choice, or null

  __device__ scalar_t score(int64_t e) const { return factor * score_of(args.score, logits[e], highest); }
  __device__ scalar_t value(int64_t e) const {
    if (args.bias == nullptr && args.num_groups == 1) return logits[e];
    return score(e) + (args.bias == nullptr ? scalar_t(0) : args.bias[e]);
  }
  __device__ bool allowed(int64_t e) const { return kept == nullptr || kept[e / (args.num_experts / args.num_groups)]; }
};

// Lane g takes groups g, g + 32, ...: the sum of the best two, then whether fewer than top_groups are before it.
template <typename scalar_t>
__device__ void choose_groups(const Choice<scalar_t>& choice, scalar_t* best, bool* kept) {
  const auto& args = choice.args;
  const int64_t size = args.num_experts / args.num_groups, lane = threadIdx.x % kGateWarp;
  for (int64_t g = lane; g < args.num_groups; g += kGateWarp) {
    scalar_t first = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      const scalar_t v = choice.value(e);
      second = v > first ? first : max(second, v);
      first = max(first, v);
    }
    best[g] = size == 1 ? first : first + second;
  }
  __syncwarp();
  for (int64_t g = lane; g < args.num_groups; g += kGateWarp) {
    int64_t rank = 0;
    for (int64_t h = 0; h < args.num_groups; ++h) rank += best[h] > best[g] || (best[h] == best[g] && h < g);
    kept[g] = rank < args.top_groups;
  }
  __syncwarp();
}

// The best allowed expert after (key, id) in descending order of keys and ascending order of ids; all lanes return it.
template <typename scalar_t, typename key_t>
__device__ int64_t next_best(const Choice<scalar_t>& choice, key_t* key, int64_t id) {
  key_t best = static_cast<key_t>(1) << (8 * sizeof(key_t) - 1);  // below the key of minus infinity
  int64_t at = choice.args.num_experts;
  for (int64_t e = threadIdx.x % kGateWarp; e < choice.args.num_experts; e += kGateWarp) {
    if (!choice.allowed(e)) continue;
    const key_t mine = key_of(choice.value(e));
    const bool after = id < 0 || mine < *key || (mine == *key && e > id);
    if (after && mine > best) best = mine, at = e;
  }
  for (int step = kGateWarp / 2; step > 0; step /= 2) {
    const key_t other = __shfl_xor_sync(0xffffffff, best, step);
    const int64_t where = __shfl_xor_sync(0xffffffff, at, step);
    if (other > best || (other == best && where < at)) best = other, at = where;
  }
  *key = best;
  return at;
}

// One warp takes one token: the sum of scores, the top groups, then k times the next best expert.
template <typename scalar_t>
__global__ void top_k_gate_kernel(GateArgs<scalar_t> args) {
  extern __shared__ double shared[];
  const int64_t warp = threadIdx.x / kGateWarp, lane = threadIdx.x % kGateWarp, stride = gridDim.x * kGateWarps;
  scalar_t* best = reinterpret_cast<scalar_t*>(shared) + warp * args.num_groups;
  bool* kept = reinterpret_cast<bool*>(shared + kGateWarps * args.num_groups) + warp * args.num_groups;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kGateWarps + warp; t < args.num_tokens; t += stride) {
    Choice<scalar_t> choice{args, args.logits + t * args.num_experts, -INFINITY, 1, nullptr};
    for (int64_t e = lane; e < args.num_experts; e += kGateWarp) choice.highest = max(choice.highest, choice.logits[e]);
    for (int step = kGateWarp / 2; step > 0; step /= 2) {
      choice.highest = max(choice.highest, __shfl_xor_sync(0xffffffff, choice.highest, step));
    }
    scalar_t total = 0;
    for (int64_t e = lane; e < args.num_experts; e += kGateWarp) total += choice.score(e);
    total = warp_sum(total);
    const bool softmax = args.score == Score::kSoftmax;
    if (softmax) choice.factor = 1 / total;
    if (args.num_groups > 1) {
      choose_groups(choice, best, kept);
      choice.kept = kept;
    }
    decltype(key_of(scalar_t(0))) key = 0;
    int64_t id = -1;
    scalar_t sum = 0;
    for (int64_t j = 0; j < args.k; ++j) {
      id = next_best(choice, &key, id);
      const scalar_t s = choice.score(id);
      sum += s;
      if (lane == 0) args.expert_ids[t * args.k + j] = static_cast<int32_t>(id);
      if (lane == 0) args.gates[t * args.k + j] = s;
    }
    if (lane != 0) continue;
    args.normalizers[t] = softmax ? choice.highest + log(total) : total;
    const scalar_t factor = args.normalize ? args.scale / (sum + scalar_t(1e-20)) : args.scale;
    for (int64_t j = 0; j < args.k; ++j) args.gates[t * args.k + j] *= factor;
  }
}

// One thread adds up one expert over kTokensPerSum tokens, blockIdx.y their number.
template <typename scalar_t>
__global__ void sum_tokens_kernel(const scalar_t* __restrict__ logits, const scalar_t* __restrict__ normalizers,
                                  scalar_t* __restrict__ sums, int64_t num_tokens, int64_t num_experts, Score score) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  if (e >= num_experts) return;
  for (int64_t block = blockIdx.y; block * kTokensPerSum < num_tokens; block += gridDim.y) {
    scalar_t sum = 0;
    for (int64_t t = block * kTokensPerSum; t < min(num_tokens, (block + 1) * kTokensPerSum); ++t) {
      const scalar_t s = score_of(score, logits[t * num_experts + e], normalizers[t]);
      sum += score == Score::kSoftmax ? s : s / normalizers[t];
    }
    sums[block * num_experts + e] = sum;
  }
}

// One thread adds up one expert over the blocks of tokens.
template <typename scalar_t>
__global__ void sum_blocks_kernel(const scalar_t* __restrict__ sums, scalar_t* __restrict__ score_sums,
                                  int64_t num_blocks, int64_t num_experts) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  if (e >= num_experts) return;
  scalar_t sum = 0;
  for (int64_t b = 0; b < num_blocks; ++b) sum += sums[b * num_experts + e];
  score_sums[e] = sum;
}

// One thread takes one route.
__global__ void locate_kernel(const int32_t* __restrict__ expert_ids, const int32_t* __restrict__ offsets,
                              const int32_t* __restrict__ inverse, int32_t* __restrict__ locations,
                              int64_t num_routes) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kGateThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x; r < num_routes; r += stride) {
    locations[r] = inverse[r] < 0 ? -1 : inverse[r] - offsets[expert_ids[r]];
  }
}

template <typename scalar_t>
void sum_scores(const Tensor& logits, const Tensor& normalizers, Tensor& score_sums, Score score) {
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const int64_t num_parts = (num_tokens + kTokensPerSum - 1) / kTokensPerSum;
  Tensor parts = allocate(logits, {num_parts, num_experts});
  const unsigned columns = num_blocks(num_experts, kGateThreads);
  const cudaStream_t stream = current_stream(logits);
  sum_tokens_kernel<<<dim3(columns, num_blocks(std::min<int64_t>(num_parts, 65535), 1)), kGateThreads, 0, stream>>>(
      logits.const_data_ptr<scalar_t>(), normalizers.const_data_ptr<scalar_t>(), parts.mutable_data_ptr<scalar_t>(),
      num_tokens, num_experts, score);
  sum_blocks_kernel<<<columns, kGateThreads, 0, stream>>>(
      parts.const_data_ptr<scalar_t>(), score_sums.mutable_data_ptr<scalar_t>(), num_parts, num_experts);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> top_k_gate_cuda(
    const Tensor& logits, const OptionalTensor& bias, int64_t k, std::string name, bool normalize, double scale,
    int64_t num_groups, int64_t top_groups, int64_t capacity, bool sums) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  GOSSAMER_CHECK_TENSOR(logits, 2, "top_k_gate");
  const Score score = score_named(name);
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1), num_routes = num_tokens * k;
  GOSSAMER_CHECK(
      score != Score::kUnknown && num_experts >= 1 && num_groups >= 1 && num_experts % num_groups == 0 &&
          top_groups >= 1 && top_groups <= num_groups && k >= 1 && k <= top_groups * (num_experts / num_groups) &&
          (!bias.has_value() || (bias->numel() == num_experts && bias->scalar_type() == logits.scalar_type())),
      "top_k_gate: arguments must fit");
  Tensor gates = allocate(logits, {num_tokens, k});
  Tensor expert_ids = allocate(logits, {num_tokens, k}, ScalarType::Int);
  Tensor locations = allocate(logits, {num_tokens, k}, ScalarType::Int);
  Tensor normalizers = allocate(logits, {num_tokens});
  Tensor score_sums = allocate(logits, {sums ? num_experts : 0});
  const auto gate = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const GateArgs<scalar_t> args{logits.const_data_ptr<scalar_t>(),
                                  data_or_null<scalar_t>(bias),
                                  gates.mutable_data_ptr<scalar_t>(),
                                  expert_ids.mutable_data_ptr<int32_t>(),
                                  normalizers.mutable_data_ptr<scalar_t>(),
                                  num_tokens,
                                  num_experts,
                                  k,
                                  num_groups,
                                  top_groups,
                                  static_cast<scalar_t>(scale),
                                  score,
                                  normalize};
    const size_t shared = kGateWarps * num_groups * (sizeof(double) + 1);
    if (num_tokens > 0) {
      top_k_gate_kernel<<<num_blocks(num_tokens, kGateWarps), kGateThreads, shared, current_stream(logits)>>>(args);
    }
    if (sums) sum_scores<scalar_t>(logits, normalizers, score_sums, score);
  };
  switch (logits.scalar_type()) {
    case ScalarType::Float: gate(float{}); break;
    case ScalarType::Double: gate(double{}); break;
    default: GOSSAMER_CHECK(false, "top_k_gate: logits must be float32 or float64");
  }
  const int32_t* ids = expert_ids.const_data_ptr<int32_t>();
  PlanTensors plan = plan_routes(expert_ids, ids, num_routes, num_experts, capacity);
  if (num_routes > 0) {
    locate_kernel<<<num_blocks(num_routes, kGateThreads), kGateThreads, 0, current_stream(logits)>>>(
        ids, plan.offsets.const_data_ptr<int32_t>(), plan.inverse.const_data_ptr<int32_t>(),
        locations.mutable_data_ptr<int32_t>(), num_routes);
  }
  check_launch("top_k_gate");
  return {gates, expert_ids, locations, plan.order, plan.offsets, plan.inverse, normalizers, score_sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("top_k_gate", TORCH_BOX(&top_k_gate_cuda)); }

}  // namespace gossamer
