// CUDA errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace dwconv {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("dwconv: ") + what + ": " + cudaGetErrorString(status));
  }
}

// To be called after each launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// The most dynamic shared memory that each kernel was given on each device, by this thread.
inline int& shared_given(const void* kernel) {
  static thread_local std::map<std::pair<int, const void*>, int> given;
  int device = -1;
  check(cudaGetDevice(&device), "current device");
  return given.try_emplace({device, kernel}, -1).first->second;
}

// Lets a kernel have this much dynamic shared memory (without the call it gets 48 KiB at most), and
// gives multiprocessors all the shared memory they have: left to itself the driver may make room
// for fewer blocks than fit. Said once, or when it is more: what is said at each launch slows down
// the next ones, of any library. cuDNN's took the host 7 us, and 18 behind our layers; of a
// MobileNetV2 for one image a forward pass took 1.17 times as long as with nn.Conv2d, and 1.08.
template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  int& given = shared_given(reinterpret_cast<const void*>(kernel));
  if (bytes <= given) return;
  if (bytes > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "shared memory");
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory");
  given = bytes;
}

}  // namespace dwconv
