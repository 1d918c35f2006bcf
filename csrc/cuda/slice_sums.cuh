// What the weight gradients end with whose blocks have slices of a channel (families/slices.h):
// where their sums go, and their launch.
#pragma once

#include "../families/slices.h"
#include "check.cuh"
#include "launcher.h"
#include "reduce.cuh"

namespace dwconv {

// Sums of a slice go to the workspace; or, where it is the only one, rounded to the result.
template <typename S>
class SliceSink {
 public:
  __device__ SliceSink(const Partials& p, int slices, int slice, float* partial,
                       const Gradients<S>& result)
      : p_(p), slices_(slices), slice_(slice), partial_(partial), result_(result) {}

  // A sum of a channel: of a tap, or after those of its bias.
  __device__ void put(int channel, int index, float sum) const {
    if (p_.whole) {
      result_.put(channel, p_.taps, index, sum);
    } else {
      const auto at = static_cast<std::int64_t>(channel) * slices_ + slice_;
      partial_[at * p_.sums() + index] = sum;
    }
  }
  // The bias's, of which every thread has a part. They meet in `shared`, where each has a float
  // that nobody needs any more.
  __device__ void put_bias(int channel, float part, float* shared) const {
    __syncthreads();
    shared[threadIdx.x] = part;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    float sum = 0;
    for (int i = threadIdx.x; i < static_cast<int>(blockDim.x); i += 32)
      sum += shared[i];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (threadIdx.x == 0) put(channel, p_.taps, sum);
  }

 private:
  const Partials& p_;
  int slices_, slice_;
  float* partial_;
  const Gradients<S>& result_;
};

// `kernel` takes `p`, which has the partial sums, the input, the output gradient, where sums go,
// and what else it wants.
template <typename S, typename Kernel, typename WeightGradient, typename... Rest>
void launch_slices(const char* name, Kernel kernel, const WeightGradient& p, const Plan& plan,
                   const Tensors& tensors, cudaStream_t stream, const Rest&... rest) {
  using Type = typename S::Type;
  const Gradients<S> result{static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)};
  auto* partial = static_cast<float*>(tensors.workspace);
  allow_shared(kernel, p.g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, p.g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output), partial,
      result, rest...);
  check_launch(name);
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial, result, stream);
}

}  // namespace dwconv
