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

// Lets a kernel have this much dynamic shared memory (without the call it gets 48 KiB at most), and
// gives multiprocessors all the shared memory they have: left to itself the driver may make room
// for fewer blocks than fit.
template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  if (bytes > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "shared memory");
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory");
}

}  // namespace dwconv
