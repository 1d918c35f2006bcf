// Elements that a thread waits for together.
#pragma once

namespace dwconv {

// So many threads, of which `thread` is this one, go over `count` elements, each of them with
// `batch` under way at a time: `load(i)` of all of those, then `store(i, element)`.
template <int batch, typename Load, typename Store>
__device__ inline void in_batches(int thread, int threads, int count, const Load& load,
                                  const Store& store) {
  for (int first = thread; first < count; first += threads * batch) {
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
// By the threads of a block.
template <int batch, typename Load, typename Store>
__device__ inline void in_batches(int count, const Load& load, const Store& store) {
  in_batches<batch>(static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), count, load,
                    store);
}

}  // namespace dwconv
