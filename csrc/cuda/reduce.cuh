// Sums in a fixed order: over the threads of a block, and over the partial sums of blocks. No
// atomics, so two runs agree to the bit.
#pragma once

#include "../families/partials.h"
#include "check.cuh"
#include "divide.cuh"
#include "memory.cuh"
#include "scalar.cuh"
#include "units.cuh"

namespace dwconv {

// Where the sums of a block for a group begin.
__device__ inline std::int64_t partial_offset(const Partials& p, std::int64_t block,
                                              std::int64_t group) {
  const std::int64_t first = run_begin(p.units, block, p.blocks) / p.units_per_group;
  return (block * p.segments + group - first) * p.planes * p.sums();
}

// Where sums go in the end. Those of a channel are of its taps, and then of its bias.
template <typename S>
struct Gradients {
  typename S::Type *weight, *bias;

  __device__ void put(std::int64_t channel, int taps, int index, float sum) const {
    (index < taps ? weight[channel * taps + index] : bias[channel]) = S::round(sum);
  }
};

// Where a block's sums for a group of channels go: to the workspace; or, where the block has had
// all units of the group, rounded to the result; or, where a team has, to `mine`, shared memory of
// the block.
template <typename S>
class Sink {
 public:
  template <typename UnitSums>
  __device__ Sink(const UnitSums& p, float* partial, const Gradients<S>& result, char* mine,
                  int group)
      : team_(p.team),
        taps_(p.partials.taps),
        sums_(p.partials.sums()),
        first_channel_(static_cast<std::int64_t>(group) * p.partials.planes),
        result_(result) {
    if (team_ > 1) {
      partial_ = reinterpret_cast<float*>(mine);
    } else if (!p.partials.whole) {
      partial_ = partial + partial_offset(p.partials, blockIdx.x, group);
    }
  }

  // A sum of one channel of the group: of a tap, or after those of its bias.
  __device__ void put(int channel, int index, float sum) const {
    if (partial_ == nullptr) {
      result_.put(first_channel_ + channel, taps_, index, sum);
    } else {
      partial_[channel * sums_ + index] = sum;
    }
  }
  // After all sums of so many channels, by all threads: adds those of the team in the order of its
  // blocks.
  __device__ void close(int channels) const {
#if __CUDA_ARCH__ >= 900
    if (team_ == 1) return;
    meet_cluster();
    const int rank = static_cast<int>(blockIdx.x) % team_;
    for (int i = rank * blockDim.x + threadIdx.x; i < channels * sums_; i += team_ * blockDim.x) {
      float sum = 0;
      for (int block = 0; block < team_; ++block)
        sum += load_of_block(partial_ + i, block);
      const int channel = i / sums_;
      result_.put(first_channel_ + channel, taps_, i - channel * sums_, sum);
    }
    meet_cluster();  // until all have read, no block's shared memory may go
#endif
  }

 private:
  int team_, taps_, sums_;
  float* partial_ = nullptr;
  std::int64_t first_channel_;
  Gradients<S> result_;
};

// The divisions of add_partials.
struct PartialsIndex {
  Partials p;
  Divisor sums, planes, units, blocks, units_per_group;

  explicit PartialsIndex(const Partials& partials)
      : p(partials),
        sums(p.sums()),
        planes(p.planes),
        units(p.units),
        blocks(p.blocks),
        units_per_group(p.units_per_group) {}

  __device__ std::int64_t first_unit(std::int64_t block) const {
    return blocks.quotient(p.units * block);
  }
};

// A block is so many results by so many lanes, each of which adds the partial sums of some blocks.
template <typename S>
__global__ void __launch_bounds__(kPartialThreads)
    add_partials(const PartialsIndex index, const float* __restrict__ partial,
                 const Gradients<S> result) {
  // In float64: some thousands of partial sums in a row would cost as much accuracy as all that was
  // summed before.
  __shared__ double sums[kPartialThreads];
  const Partials& p = index.p;
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t channel = index.sums.quotient(number);
  const std::int64_t group = index.planes.quotient(channel);
  const std::int64_t low = group * p.units_per_group;
  const std::int64_t high = low + p.units_per_group;
  // The blocks whose runs meet the group.
  std::int64_t first = index.units.quotient(low * p.blocks);
  while (index.first_unit(first + 1) <= low)
    ++first;
  std::int64_t last = index.units.ceil_quotient(high * p.blocks);
  while (index.first_unit(last - 1) >= high)
    --last;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  double sum = 0;
  if (channel < p.channels) {
    // Only the first of them can have met a group before this one.
    const std::int64_t group_sums = static_cast<std::int64_t>(p.planes) * p.sums();
    const std::int64_t segment = p.segments * group_sums;
    const float* from = partial + (number - group * group_sums);
    const std::int64_t before = group - index.units_per_group.quotient(index.first_unit(first));
    if (threadIdx.y == 0) sum = from[first * segment + before * group_sums];
    const int lanes = static_cast<int>(blockDim.y);
    for (std::int64_t block = first + 1 + threadIdx.y; block < last;
         block += kPartialBatch * lanes) {
      float batch[kPartialBatch];
#pragma unroll
      for (int i = 0; i < kPartialBatch; ++i)
        batch[i] = block + i * lanes < last ? from[(block + i * lanes) * segment] : 0.f;
#pragma unroll
      for (int i = 0; i < kPartialBatch; ++i)
        sum += batch[i];
    }
  }
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int results = static_cast<int>(blockDim.x);
  sums[thread] = sum;
  for (int half = kPartialThreads / 2; half >= results; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (threadIdx.y == 0 && channel < p.channels) {
    result.put(channel, p.taps, static_cast<int>(number - channel * p.sums()),
               static_cast<float>(sums[thread]));
  }
}

// Lets the kernel that waits for this one start early; it still waits for the results.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// After the kernel that writes the partial sums, on the same stream; if they overlap, while that
// kernel still runs.
template <typename S>
void launch_add_partials(const Partials& p, bool overlap, const float* partial,
                         const Gradients<S>& result, cudaStream_t stream) {
  if (p.whole) return;
  const std::int64_t results = p.channels * p.sums();
  const int lanes = p.lanes();
  const int of_block = kPartialThreads / lanes;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>((results + of_block - 1) / of_block);
  config.blockDim = dim3(of_block, lanes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&config, add_partials<S>, PartialsIndex(p), partial, result),
        "add_partials");
}

}  // namespace dwconv
