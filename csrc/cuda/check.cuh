// CUDA errors as exceptions.
#pragma once

#include <cuda_runtime.h>

namespace dwconv {

// Throws std::runtime_error.
[[noreturn]] void fail(const char* what, cudaError_t status);
[[noreturn]] void fail(const char* what, int driver_error);

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(what, status);
}

// To be called after each launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// Lets a kernel have this much dynamic shared memory (without the call it gets 48 KiB at most), and
// gives multiprocessors all the shared memory they have: left to itself the driver may make room
// for fewer blocks than fit. Said once, or when it is more: what is said at each launch slows down
// the next ones, of any library. cuDNN's took the host 7 us, and 18 behind our layers; of a
// MobileNetV2 for one image a forward pass took 1.17 times as long as with nn.Conv2d, and 1.08.
void allow_shared_memory(const void* kernel, int bytes);

template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}

}  // namespace dwconv
