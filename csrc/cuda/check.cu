#include "check.cuh"

#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace dwconv {

void fail(const char* what, cudaError_t status) {
  throw std::runtime_error(std::string("dwconv: ") + what + ": " + cudaGetErrorString(status));
}
void fail(const char* what, int driver_error) {
  throw std::runtime_error(std::string("dwconv: ") + what + ": driver error " +
                           std::to_string(driver_error));
}

// Remembered for all threads: autograd's must not take from a kernel what the main thread gave it.
void allow_shared_memory(const void* kernel, int bytes) {
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

}  // namespace dwconv
