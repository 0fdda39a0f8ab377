// What every CUDA launcher needs: the device guard, the current stream, the launch check. The weak symbol lets one
// library load where torch is CPU-only (the stream function is then null and no kernel is ever launched).
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "common/tensor.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace gossamer {

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* function) {
  const cudaError_t error = cudaGetLastError();
  GOSSAMER_CHECK(error == cudaSuccess, function, ": kernel launch failed: ", cudaGetErrorString(error));
}

inline unsigned num_blocks(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, 1 << 20));
}

}  // namespace gossamer
