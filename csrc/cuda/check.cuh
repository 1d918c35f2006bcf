// CUDA errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace dwconv {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("dwconv: ") + what + ": " + cudaGetErrorString(status));
  }
}

// To be called after each launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace dwconv
