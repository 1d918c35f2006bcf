// How a tensor's share of one unit of work lies in shared memory: rows with zeros around them, so
// that no kernel tests bounds per tap. Shared by planners and kernels; all numbers are elements.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../plan.h"

namespace dwconv {

// One spatial axis as a kernel that gathers sees it: result r reads the source elements
//   r * stride - pad + tap * dilation.
struct Window {
  int source = 1;
  int result = 1;
  int kernel = 1;
  int stride = 1;
  int dilation = 1;
  int pad = 0;

  // Source elements, padding included, that `results` neighbouring results read.
  constexpr int reach(int results) const {
    return (results - 1) * stride + (kernel - 1) * dilation + 1;
  }
};

// Of the forward pass, and of the weight gradient, which reads the same windows.
constexpr Window forward_window(const Axis& axis) {
  return {static_cast<int>(axis.input),    static_cast<int>(axis.output()),
          static_cast<int>(axis.kernel),   static_cast<int>(axis.stride),
          static_cast<int>(axis.dilation), static_cast<int>(axis.pad_before)};
}

// Of the input gradient with stride 1: the filter turned round, on the output gradient.
constexpr Window mirrored_window(const Axis& axis) {
  const auto pad = axis.dilation * (axis.kernel - 1) - axis.pad_before;
  return {static_cast<int>(axis.output()), static_cast<int>(axis.input),
          static_cast<int>(axis.kernel),   1,
          static_cast<int>(axis.dilation), static_cast<int>(pad)};
}

// Of the input gradient with stride 2. With tap = 2 * m + phase, result 2 * q + phase - pad reads
// the output gradient at q - m: so the result index is the step q, the taps are the m, in reverse.
constexpr Window phase_window(const Axis& axis) {
  const auto steps = (axis.input - 1 + axis.pad_before) / 2 + 1;
  const auto taps = (axis.kernel + 1) / 2;
  return {static_cast<int>(axis.output()), static_cast<int>(steps), static_cast<int>(taps), 1, 1,
          static_cast<int>(taps - 1)};
}

// Whether some results of the forward pass look at no element of the image.
constexpr bool padding_holds_results(const Problem& problem) {
  const auto holds = [](const Axis& axis) {
    return std::max(axis.pad_before, axis.pad_after) >= axis.extent();
  };
  return holds(problem.h) || holds(problem.w);
}

struct Stage {
  int height = 0;  // of an image
  int width = 0;
  int rows = 0;       // loaded of each plane
  int first_row = 0;  // the first of them in band 0, as an image row; rows outside become zeros
  int top = 0;        // the shared row that it goes to
  int left = 0;       // the shared column of image column 0
  int pitch = 0;      // from one row to the next
  int plane = 0;      // from one plane to the next
  int chunk = 1;      // in one copy
  int elements = 0;   // of all planes
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int a, int multiple) { return ceil_div(a, multiple) * multiple; }

// Widest copy, in elements, of rows that are `width` long and start at any multiple of it.
constexpr int widest_chunk(int width, int element_bytes) {
  int chunk = 16 / element_bytes;
  while (width % chunk != 0)
    chunk /= 2;
  return chunk;
}

// The shared memory that a block may use, and that blocks of one multiprocessor share (each takes
// kSharedReserve more). CUDA programming guide, technical specifications by compute capability.
inline constexpr int kSharedReserve = 1024;
constexpr int shared_per_multiprocessor(const Arch& arch) {
  switch (arch.compute_capability) {
    case 75:
      return 64 << 10;
    case 80:
    case 87:
      return 164 << 10;
    case 86:
    case 89:
    case 120:
    case 121:
      return 100 << 10;
    default:
      return arch.compute_capability >= 90 ? 228 << 10 : 64 << 10;
  }
}
constexpr int shared_per_block(const Arch& arch) {
  return shared_per_multiprocessor(arch) - (arch.compute_capability == 75 ? 0 : kSharedReserve);
}

// Blocks of one multiprocessor that fit its shared memory.
constexpr int blocks_that_fit(const Arch& arch, int shared_bytes) {
  return shared_per_multiprocessor(arch) / (shared_bytes + kSharedReserve);
}

}  // namespace dwconv
