// The filters of the Toeplitz family's forward pass and input gradient, as the tensor cores take
// them.
#pragma once

#include "launch_units.cuh"
#include "toeplitz_unit.cuh"

namespace dwconv::toeplitz {

struct Convolution {
  Grid grid;
  bool mirrored;  // turn the filters round
  SmallDivisor dilation_w;
  // With phases they are not those of the geometry.
  int kernel_w;
  int result_h;
  int pad_h, pad_w;
  // Of the source; only asked with stride 2. Last: with other offsets of what comes before, ptxas
  // makes dense kernels of it that are 2 % slower (56x56 k7 float16, 65.1 and 66.5 us).
  Use use;

  Convolution(const Geometry& g, const Problem& problem, const Plan& plan)
      : grid(g, problem, plan),
        mirrored(problem.pass == Pass::backward_input),
        dilation_w(g.w.dilation),
        kernel_w(static_cast<int>(problem.w.kernel)),
        result_h(static_cast<int>(mirrored ? problem.h.input : problem.h.output())),
        pad_h(static_cast<int>(problem.h.pad_before)),
        pad_w(static_cast<int>(problem.w.pad_before)),
        use(use_of(plan)) {}
};

// Phases go over the taps in reverse by themselves.
template <typename A>
__device__ inline bool mirrored(const Convolution& p) {
  return A::mode != Mode::phases && p.mirrored;
}

// The taps that a lane's numbers of a part's matrix are: column k of a window meets result n of the
// strip in tap (k - shift - n * stride) / dilation, if there is one. With phases, the part's taps
// are every second.
template <typename A>
struct LaneTaps {
  int tap[4];
  bool met[4];

  __device__ LaneTaps(const Convolution& p, int part) {
    const Geometry& g = p.grid.g;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = lane % 4 * 2 + i % 2 + i / 2 * 8;
      const int n = lane / 4;
      if constexpr (A::mode == Mode::phases) {
        tap[i] = 2 * (g.w.kernel - 1 - (column - g.shift - n)) + part;
        met[i] = column - g.shift - n >= 0 && tap[i] >= 0 && tap[i] < p.kernel_w;
      } else {
        int at = column + part * kWindow - g.shift - n * g.w.stride;
        met[i] = at >= 0 && p.dilation_w.remainder(at) == 0 && at < p.kernel_w;
        tap[i] = at;
      }
    }
  }
};

// A channel's matrices in shared memory, as lanes hold them.
template <typename A>
struct Matrices {
  const uint2* matrices;

  __device__ void load(std::uint32_t (&filter)[A::kernel_h][A::parts][2]) const {
#pragma unroll
    for (int row = 0; row < A::kernel_h; ++row)
#pragma unroll
      for (int part = 0; part < A::parts; ++part) {
        const uint2 two = matrices[(row * A::parts + part) * 32 + threadIdx.x % 32];
        filter[row][part][0] = two.x;
        filter[row][part][1] = two.y;
      }
  }
};

// Makes them, by a warp.
template <typename A, typename Type>
__device__ inline void store_matrices(uint2* matrices, const Convolution& p,
                                      const Type* __restrict__ channel) {
  const auto* bits = reinterpret_cast<const std::uint16_t*>(channel);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < A::parts; ++part) {
    const LaneTaps<A> lanes(p, part);
    int offset[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      offset[i] = mirrored<A>(p) ? A::kernel_h * p.kernel_w - 1 - lanes.tap[i] : lanes.tap[i];
    const int step = mirrored<A>(p) ? -p.kernel_w : p.kernel_w;
#pragma unroll
    for (int row = 0; row < A::kernel_h; ++row) {
      std::uint16_t value[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (lanes.met[i]) value[i] = bits[offset[i] + row * step];
      matrices[(row * A::parts + part) * 32 + lane] = {
          value[0] | static_cast<std::uint32_t>(value[1]) << 16,
          value[2] | static_cast<std::uint32_t>(value[3]) << 16};
    }
  }
}

}  // namespace dwconv::toeplitz
