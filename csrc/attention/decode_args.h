// The arguments of decode_attention as plain numbers and pointers, for the CPU and the CUDA kernel alike.
#pragma once

#include <tuple>

#include "attention/decode_plan.h"
#include "common/tensor.h"

namespace gossamer {

inline CacheView cache_view(const Tensor& cache, const OptionalTensor& scale) {
  CacheView view{};
  view.data = static_cast<const char*>(cache.const_data_ptr());
  view.scale = data_or_null<float>(scale);
  for (int i = 0; i < 3; ++i) {
    view.stride[i] = cache.stride(i) * cache.element_size();
    view.scale_stride[i] = scale ? scale->stride(i) : 0;
  }
  return view;
}

inline Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kHalf;
    case ScalarType::Char: return Element::kInt8;
    case ScalarType::Float8_e4m3fn: return Element::kE4M3;
    case ScalarType::Float8_e5m2: return Element::kE5M2;
    default: GOSSAMER_CHECK(false, "decode_attention: q must be float32, bfloat16 or float16");
  }
}

// Checks the types, and allocates out and lse.
inline std::tuple<Tensor, Tensor> empty_results(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const OptionalTensor& k_scale) {
  GOSSAMER_CHECK_TENSOR(q, 4, "decode_attention");
  GOSSAMER_CHECK(k.dim() == 4 && v.dim() == 4 && k.stride(3) == 1 && v.stride(3) == 1,
                 "decode_attention: k and v must have 4 dimensions, the last one dense");
  const bool bytes = size_of(element_of(k)) == 1;
  GOSSAMER_CHECK(k.scalar_type() == v.scalar_type() && bytes == k_scale.has_value() &&
                     (bytes || k.scalar_type() == q.scalar_type()) && size_of(element_of(q)) > 1,
                 "decode_attention: k and v must have the type of q, or int8 or float8 with scales");
  return {allocate(q, {q.size(0), q.size(1), q.size(2), v.size(3)}),
          allocate(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float)};
}

inline DecodeArgs decode_args(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& seq_lens,
                              const OptionalTensor& block_table, double scale, int64_t window,
                              const OptionalTensor& sinks, double softcap, const OptionalTensor& alibi_slopes,
                              const OptionalTensor& tree_mask, const OptionalTensor& k_scale,
                              const OptionalTensor& v_scale, Tensor& out, Tensor& lse) {
  DecodeArgs args{};
  args.query_type = element_of(q);
  args.cache_type = element_of(k);
  args.q = static_cast<const char*>(q.const_data_ptr());
  args.k = cache_view(k, k_scale);
  args.v = cache_view(v, v_scale);
  args.out = static_cast<char*>(out.mutable_data_ptr());
  args.lse = lse.mutable_data_ptr<float>();
  args.batch = q.size(0);
  args.num_queries = q.size(1);
  args.num_kv_heads = k.size(2);
  args.group = q.size(2) / k.size(2);
  args.key_dim = q.size(3);
  args.value_dim = v.size(3);
  args.seq_lens = data_or_null<int64_t>(seq_lens);
  args.block_table = data_or_null<int64_t>(block_table);
  args.max_blocks = block_table ? block_table->size(1) : 0;
  args.block_size = k.size(1);
  args.num_blocks = k.size(0);
  args.max_len = block_table ? args.max_blocks * args.block_size : k.size(1);
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.window = window;
  args.sinks = data_or_null<float>(sinks);
  args.slopes = data_or_null<float>(alibi_slopes);
  args.tree_mask = data_or_null<bool>(tree_mask);
  args.tree_stride = tree_mask && tree_mask->size(0) > 1 ? args.num_queries * args.num_queries : 0;
  args.values_are_keys = args.k.data == args.v.data;
  return args;
}

}  // namespace gossamer
