// Channels_last problems by way of contiguous kernels: their images are transposed first, and the
// result back. What that takes of memory and of time, shared by the planner and the launcher.
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

// What a block transposes: so many matrices, or a part of one; and how it lies in shared memory.
struct TransposeTile {
  static constexpr int kThreads = 256;
  static constexpr int kBytes = 16 << 10;  // but for what fills the rows up
  static constexpr int kWide = 128;        // elements of a row that are enough
  static constexpr int kShort = 32;        // rows that are copied without regard to where they end

  int matrices = 1, rows = 1, columns = 1;
  int pitch = 1;  // elements from one row to the next

  constexpr TransposeTile(const Matrices& m, int element_bytes) {
    const int most = kBytes / element_bytes;
    if (m.rows * m.columns <= most) {
      rows = static_cast<int>(m.rows);
      columns = static_cast<int>(m.columns);
      matrices = static_cast<int>(std::min<std::int64_t>(most / (rows * columns), m.count));
    } else if (m.rows < m.columns) {
      rows = part(m.rows, kWide);
      columns = part(m.columns, most / rows);
    } else {
      columns = part(m.columns, kWide);
      rows = part(m.rows, most / columns);
    }
    pitch = columns;
    if (copies_whole(m)) return;
    // Lanes that read a column meet different banks: an odd number of words.
    while (pitch * element_bytes % 8 != 4)
      ++pitch;
  }

  // Its rows are short, and lie one behind the other.
  constexpr bool copies_whole(const Matrices& m) const {
    return columns == m.columns && columns < kShort && columns % 8 != 0;
  }
  // The same of its result.
  constexpr bool stores_whole(const Matrices& m) const { return rows == m.rows && rows < kShort; }
  constexpr int shared_bytes(int element_bytes) const {
    return matrices * rows * pitch * element_bytes + 16;
  }

 private:
  // An even part of `size`, at most `most`, that a warp takes 32 of at a time.
  static constexpr int part(std::int64_t size, int most) {
    if (size <= most) return static_cast<int>(size);
    const std::int64_t parts = (size + most - 1) / most;
    return static_cast<int>(
        std::min<std::int64_t>((size + parts * 32 - 1) / (parts * 32) * 32, most / 32 * 32));
  }
};

}  // namespace dwconv
