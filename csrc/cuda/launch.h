// The border between host code and CUDA: no CUDA header is needed to include it.
#pragma once

#include "../plan.h"

namespace dwconv {

// The three tensors of a convolution, dense in the problem's layout (weight: contiguous). The
// problem's pass says which of them is written: output, input or weight.
struct Tensors {
  void* input = nullptr;
  void* weight = nullptr;
  void* output = nullptr;
  // Read by forward, where it is not null; written by backward_weight, where the problem has one.
  void* bias = nullptr;
  void* workspace = nullptr;  // plan.workspace_bytes, 256-byte aligned; contents irrelevant
};

Arch device_arch(int device);

// Starts the planned kernel on the device's stream and returns. Throws std::runtime_error when CUDA
// reports an error.
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, int device,
            void* stream);

// The version of nvcc that compiled the kernels, such as "13.0.88".
const char* nvcc_version();

}  // namespace dwconv
