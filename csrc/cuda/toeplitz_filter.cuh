// The filters of the Toeplitz family's forward pass and input gradient, as the tensor cores take
// them.
#pragma once

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
};

// The Toeplitz matrices of a channel, as lanes hold them: column k of a window meets result n of
// the strip in tap (k - shift - n * stride) / dilation, if there is one. With phases, the part's
// taps are every second.
template <typename A, typename Type>
__device__ inline void store_matrices(uint2* matrices, const Convolution& p,
                                      const Type* __restrict__ channel) {
  const Geometry& g = p.grid.g;
  const auto* bits = reinterpret_cast<const std::uint16_t*>(channel);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < A::parts; ++part) {
    int offset[4];
    bool met[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = lane % 4 * 2 + i % 2 + i / 2 * 8;
      const int n = lane / 4;
      if constexpr (A::mode == Mode::phases) {
        const int tap = 2 * (g.w.kernel - 1 - (column - g.shift - n)) + part;
        met[i] = column - g.shift - n >= 0 && tap >= 0 && tap < p.kernel_w;
        offset[i] = tap;
      } else {
        int tap = column + part * kWindow - g.shift - n * g.w.stride;
        met[i] = tap >= 0 && p.dilation_w.remainder(tap) == 0 && tap < p.kernel_w;
        offset[i] = p.mirrored ? A::kernel_h * p.kernel_w - 1 - tap : tap;
      }
    }
    const int step = A::mode != Mode::phases && p.mirrored ? -p.kernel_w : p.kernel_w;
#pragma unroll
    for (int row = 0; row < A::kernel_h; ++row) {
      std::uint16_t value[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (met[i]) value[i] = bits[offset[i] + row * step];
      matrices[(row * A::parts + part) * 32 + lane] = {
          value[0] | static_cast<std::uint32_t>(value[1]) << 16,
          value[2] | static_cast<std::uint32_t>(value[3]) << 16};
    }
  }
}

}  // namespace dwconv::toeplitz
