// CUDA errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>
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

// Lets a kernel have this much dynamic shared memory (without the call it gets 48 KiB at most), and
// gives multiprocessors all the shared memory they have: left to itself the driver may make room
// for fewer blocks than fit. Said once, or when it is more: what is said at each launch slows down
// the next ones, of any library. cuDNN's took the host 7 us, and 18 behind our layers; of a
// MobileNetV2 for one image a forward pass took 1.17 times as long as with nn.Conv2d, and 1.08.
// Remembered for all threads: autograd's must not take from a kernel what the main thread gave it.
inline void allow_shared_memory(const void* kernel, int bytes) {
  static std::shared_mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;
  std::pair<const void*, int> key{kernel, 0};
  check(cudaGetDevice(&key.second), "the current device");
  {
    std::shared_lock lock(mutex);
    const auto found = allowed.find(key);
    if (found != allowed.end() && found->second >= bytes) return;
  }
  std::unique_lock lock(mutex);  // none may ask for less meanwhile
  const int most = std::max(bytes, allowed[key]);
  if (most > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "shared memory");
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory");
  allowed[key] = most;
}

template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}

}  // namespace dwconv
