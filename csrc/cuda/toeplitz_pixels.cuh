// The Toeplitz family, channels_last: forward and input gradient. A block gathers a unit's pixels
// as planes, walks down them as if they had come contiguous, and sends its planes of results as
// pixels. While it waits for memory, others of its multiprocessor work.
#pragma once

#include "batches.cuh"
#include "launch_units.cuh"
#include "toeplitz.h"
#include "toeplitz_choice.cuh"
#include "toeplitz_planes.cuh"
#include "toeplitz_walk.cuh"

namespace dwconv::toeplitz {

struct PixelConvolution : Convolution {
  Pixels source, result;
};

// Filters in shared memory, and which of their taps each number of a lane's matrix is. The matrices
// themselves would take eight times the room: a unit has many channels here.
template <typename A>
class PixelFilters {
  static constexpr int kRow = tap_pitch(A::parts);

 public:
  __device__ PixelFilters(const Convolution& p, char* shared)
      : offsets_(reinterpret_cast<uint2*>(shared)),
        biases_(reinterpret_cast<float*>(shared + kTapTableBytes)),
        taps_(reinterpret_cast<std::uint16_t*>(biases_ + p.grid.g.channels)) {}

  // By one warp.
  __device__ void store_offsets(const Convolution& p) const {
    std::uint32_t words[2] = {};
#pragma unroll
    for (int part = 0; part < A::parts; ++part) {
      const LaneTaps<A> lanes(p, part);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[part] |= static_cast<std::uint32_t>(lanes.met[i] ? lanes.tap[i] : p.kernel_w)
                       << 8 * i;
    }
    offsets_[threadIdx.x % 32] = {words[0], words[1]};
  }
  // By the block. The last of each row is zero, which taps are that are not met.
  template <typename S>
  __device__ void store(const Convolution& p, const typename S::Type* weight,
                        const typename S::Type* bias, std::int64_t first_channel,
                        int channels) const {
    for (int i = threadIdx.x; i < channels; i += blockDim.x)
      biases_[i] = bias == nullptr ? 0.f : S::widen(bias[first_channel + i]);
    weight += first_channel * A::kernel_h * p.kernel_w;
    const auto* bits = reinterpret_cast<const std::uint16_t*>(weight);
    const int taps = A::kernel_h * p.kernel_w;
    in_batches<8>(
        channels * A::kernel_h * kRow,
        [&](int i) {
          const int row = i / kRow;
          const int tap = i - row * kRow;
          const int channel = row / A::kernel_h;
          const int of_channel = (row - channel * A::kernel_h) * p.kernel_w + tap;
          const int at = mirrored<A>(p) ? taps - 1 - of_channel : of_channel;
          return tap < p.kernel_w ? bits[channel * taps + at] : std::uint16_t{0};
        },
        [&](int i, std::uint16_t tap) { taps_[i] = tap; });
  }

  __device__ const float* biases() const { return biases_; }
  // The matrices of one channel.
  struct Channel {
    const std::uint16_t* taps;
    uint2 offsets;

    __device__ void load(std::uint32_t (&filter)[A::kernel_h][A::parts][2]) const {
#pragma unroll
      for (int part = 0; part < A::parts; ++part) {
        const std::uint32_t four = part == 0 ? offsets.x : offsets.y;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::uint16_t* one = taps + (four >> 16 * half & 0xff);
          const std::uint16_t* two = taps + (four >> (16 * half + 8) & 0xff);
#pragma unroll
          for (int i = 0; i < A::kernel_h; ++i)
            filter[i][part][half] = one[i * kRow] | static_cast<std::uint32_t>(two[i * kRow]) << 16;
        }
      }
    }
  };
  __device__ Channel of(int channel) const {
    return {taps_ + channel * A::kernel_h * kRow, offsets_[threadIdx.x % 32]};
  }

 private:
  uint2* offsets_;
  float* biases_;
  std::uint16_t* taps_;
};

template <typename S, typename A>
__global__ void __launch_bounds__(pixel_threads(A::value), resident_pixel_blocks(A::value))
    convolve_pixels(const __grid_constant__ PixelConvolution p,
                    const typename S::Type* __restrict__ source,
                    const typename S::Type* __restrict__ weight,
                    const typename S::Type* __restrict__ bias,
                    typename S::Type* __restrict__ result) {
  if constexpr (!kTensorCores) return;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const PixelFilters<A> filters(p, shared + g.rest_at);
  if (warp_index() == 0) filters.store_offsets(p);
  int filters_of = -1;
  Unit unit = grid.dealer.first(blockIdx.x);
#pragma unroll 1
  for (int left = grid.dealer.count(blockIdx.x); left > 0; --left, grid.dealer.advance(unit)) {
    const int channels = grid.channels_of(unit), images = grid.images_of(unit);
    const UnitRows<A> rows(p, unit);
    const std::int64_t first = p.source.first(grid, unit, rows.source.first);
    if (unit.group != filters_of) {
      filters_of = unit.group;
      filters.template store<S>(p, weight, bias, grid.first_channel(unit), channels);
    }
    by_channels(p.source, [&]<int per>() {
      gather<per>(p.source, source, first, channels, rows.source.count(), images,
                  shared + g.stages_at);
    });
    __syncthreads();
    // Made anew for each unit: registers are wanted for pixels between them.
    Place<S, A> place;
    walk_tasks<true>(p, place, grid.task(warp_index()), unit, rows, Runs(), g.stages_at, Runs(),
                     g.results_at, filters.biases(), shared,
                     [&](int channel) { return filters.of(channel); });
    __syncthreads();
    by_channels(p.result, [&]<int per>() {
      scatter<per>(p.result, result, p.result.first(grid, unit, rows.result.first), channels,
                   rows.result.count(), images, shared + g.results_at);
    });
  }
}

template <typename S>
struct PixelConvolutions {
  using Kernel = void (*)(PixelConvolution, const typename S::Type*, const typename S::Type*,
                          const typename S::Type*, typename S::Type*);
  static constexpr bool takes(const Access& a) { return takes_pixels(a, false); }
  template <typename A>
  static constexpr Kernel of() {
    return convolve_pixels<S, A>;
  }
};

template <DType dtype>
void launch_convolve_pixels(const Problem& problem, const Plan& plan, const Tensors& tensors,
                            cudaStream_t stream) {
  using S = Scalar<dtype>;
  const bool backward = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, plan.tiling);
  const Convolution convolution(g, problem, plan);
  const PixelConvolution p{convolution, source_pixels(convolution.grid, problem),
                           result_pixels(convolution.grid, problem)};
  const auto kernel = backward ? choose<PixelConvolutions<S>, Mode::dense, Mode::phases>(g.access)
                               : choose<PixelConvolutions<S>, Mode::dense, Mode::strided>(g.access);
  launch_convolution<S>("toeplitz convolve_pixels", kernel, p, problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
