// Channels_last problems by way of contiguous kernels: their images are transposed first, and the
// result back. What is transposed, and where it lies, shared by the planner and the launcher.
#pragma once

#include <algorithm>

#include "problem.h"

namespace dwconv {

// Matrices of `rows` x `columns`, one behind the other, each to be transposed. An image is a matrix
// of pixels x channels, or, contiguous, of channels x pixels.
struct Matrices {
  // So that within a tile 32 bits count elements.
  static constexpr std::int64_t kMostSide = 1 << 24;

  std::int64_t count = 1, rows = 1, columns = 1;

  constexpr bool can_be_transposed() const { return std::max(rows, columns) < kMostSide; }
  constexpr Matrices transposed() const { return {count, columns, rows}; }
};

// The images of a channels_last problem, pixel by pixel.
constexpr Matrices input_pixels(const Problem& problem) {
  return {problem.batch, problem.h.input * problem.w.input, problem.channels};
}
constexpr Matrices output_pixels(const Problem& problem) {
  return {problem.batch, problem.h.output() * problem.w.output(), problem.filters()};
}

// Where the contiguous images lie in the workspace, in bytes; the kernel's own workspace is behind.
struct TransposedImages {
  std::int64_t output, end;

  explicit constexpr TransposedImages(const Problem& problem)
      : output(aligned(problem.input_numel() * size_of(problem.dtype))),
        end(output + aligned(problem.output_numel() * size_of(problem.dtype))) {}

 private:
  static constexpr std::int64_t aligned(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

}  // namespace dwconv
