// What all lanes of a warp have alike.
#pragma once

#include <cuda_runtime.h>

namespace dwconv {

// The same number, of which the compiler then knows that all lanes have it.
__device__ inline int uniform(int number) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, number);
#else
  return __shfl_sync(0xffffffffu, number, 0);
#endif
}

}  // namespace dwconv
