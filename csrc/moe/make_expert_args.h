// ExpertArgs from the tensors of a call, for the CPU and CUDA operators.
#pragma once

#include <string>

#include "common/tensor.h"
#include "moe/expert_args.h"

namespace gossamer {

inline Activation activation_named(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  GOSSAMER_CHECK(name == "swiglu", "expert_mlp: activation must be relu, gelu or swiglu, got ", name);
  return Activation::kSwiglu;
}

template <typename scalar_t>
ExpertArgs<scalar_t> expert_args(const Tensor& x, const Tensor& order, const Tensor& offsets,
                                 const OptionalTensor& gates, const Tensor& w_in, const Tensor& w_out, int64_t k,
                                 const std::string& activation, double limit) {
  ExpertArgs<scalar_t> args{};
  args.x = x.const_data_ptr<scalar_t>();
  args.order = order.const_data_ptr<int32_t>();
  args.offsets = offsets.const_data_ptr<int32_t>();
  args.gates = data_or_null<typename ExpertArgs<scalar_t>::acc_t>(gates);
  args.w_in = w_in.const_data_ptr<scalar_t>();
  args.w_out = w_out.const_data_ptr<scalar_t>();
  args.num_tokens = x.size(0);
  args.num_experts = w_in.size(0);
  args.d_model = x.size(1);
  args.d_ff = w_out.size(2);
  args.k = static_cast<int32_t>(k);
  args.activation = activation_named(activation);
  args.limit = static_cast<typename ExpertArgs<scalar_t>::acc_t>(limit);
  GOSSAMER_CHECK(args.d_hidden() == w_in.size(1), "expert_mlp: w_in must be [E, 2 f, d] for swiglu, else [E, f, d]");
  GOSSAMER_CHECK(!gates.has_value() || gates->numel() == x.size(0) * k, "expert_mlp: gates must be [num_tokens, k]");
  return args;
}

}  // namespace gossamer
