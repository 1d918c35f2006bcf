// Elements that a thread waits for together.
#pragma once

namespace dwconv {

// The threads of a block go over `count` elements, each of them with `batch` under way at a time:
// `load(i)` of all of those, then `store(i, element)`.
template <int batch, typename Load, typename Store>
__device__ inline void in_batches(int count, const Load& load, const Store& store) {
  const auto threads = static_cast<int>(blockDim.x);
  for (int first = threadIdx.x; first < count; first += threads * batch) {
    decltype(load(0)) elements[batch];
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      if (first + k * threads < count) elements[k] = load(first + k * threads);
    }
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      if (first + k * threads < count) store(first + k * threads, elements[k]);
    }
  }
}

}  // namespace dwconv
