// How a router turns logits into scores.
#pragma once

#include <string_view>

namespace gossamer {

enum class Score { kSoftmax, kSigmoid, kSqrtSoftplus, kUnknown };

inline Score score_named(std::string_view name) {
  if (name == "softmax") return Score::kSoftmax;
  if (name == "sigmoid") return Score::kSigmoid;
  return name == "sqrt_softplus" ? Score::kSqrtSoftplus : Score::kUnknown;
}

}  // namespace gossamer
