// The Toeplitz family: 16-bit tensors on the tensor cores, which multiply 16 positions x 16 columns
// of the image by 16 x 8: the Toeplitz matrix of one filter row. Shared by its planner and its
// kernels.
//
// A strip is 8 neighbouring results of a row, or 6 where those read a window of 16 columns and 8
// one of 32. Of an image of one strip the window may hold all columns, however far the filter
// reaches beyond. A position is one strip of one image: a warp takes 16 of a channel at a time, and
// walks down their rows (those of one class modulo the dilation) together.
//
// Of channels_last images a block makes planes in shared memory, as if they had come contiguous,
// and pixels again of its planes of results.
#pragma once

#include "unit.h"

namespace dwconv::toeplitz {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kPositions = 16;
inline constexpr int kColumns = 8;
inline constexpr int kFewColumns = 6;
inline constexpr int kWindow = 16;
inline constexpr int kMaxParts = 2;  // of a window
inline constexpr int kMaxKernelH = 11;

// How rows of the source and of results go together. dense: one row each, a step apart by the
// dilation; strided: two rows of the source for one of results; phases (input gradient with stride
// 2): one row of the source for two of results, and one column for two.
enum class Mode : std::uint8_t { dense, strided, phases };

// What a kernel is compiled for. unit: elements that a lane reads at a time, which needs rows that
// are multiples of it. parts: 16 columns each of a window; with phases, of the window there is one,
// and parts are the two phases of columns.
struct Access {
  Mode mode = Mode::dense;
  int kernel_h = 1;
  int parts = 1;
  int unit = 1;

  // Rows of results under way at a time.
  constexpr int ring() const { return mode == Mode::dense ? kernel_h : (kernel_h + 1) / 2; }
  constexpr int windows() const { return mode == Mode::phases ? 1 : parts; }
  constexpr int source_rows() const { return mode == Mode::strided ? 2 : 1; }  // of a step
  constexpr int result_rows() const { return mode == Mode::phases ? 2 : 1; }
};

// Whether kernels are compiled whose lanes read two elements at a time. Filters of 2, 4... rows are
// rare, and their kernels of several parts were a sixth of what the compiler had to do here:
// without them 999 timings of random problems with such filters are 2 % longer.
constexpr bool has_pairs(int kernel_h, int parts) { return parts == 1 || kernel_h % 2 != 0; }

// An access as a type.
template <Mode mode_, int kernel_h_, int parts_, int unit_>
struct Fixed {
  static constexpr Access value{mode_, kernel_h_, parts_, unit_};
  static constexpr Mode mode = mode_;
  static constexpr int kernel_h = kernel_h_;
  static constexpr int parts = parts_;
  static constexpr int unit = unit_;
  static constexpr int ring = value.ring();
  static constexpr int windows = value.windows();
  static constexpr int source_rows = value.source_rows();
  static constexpr int result_rows = value.result_rows();
};

// Bytes before the first run and after all else that lanes may read beside an image; they never
// count.
inline constexpr int kMarginBytes = 128;

// Of channels_last images: which tap each number of a lane's matrix is, 8 for each of 32 lanes.
inline constexpr int kTapTableBytes = 8 * 32;
// And from one filter row to the next, in elements: the taps that one or two windows hold, and a
// zero.
constexpr int tap_pitch(int parts) { return parts * kWindow - kFewColumns + 2; }

// Filters so wide that a window which holds the image has taps for: one for each lane of a weight
// gradient; of channels_last images, as many as there is room for.
constexpr int most_taps(Layout layout) { return layout == Layout::nhwc ? tap_pitch(1) - 1 : 32; }

// The pitch of the 16 x 8 products of a weight gradient's filter row: it keeps the diagonals in
// different banks.
inline constexpr int kSumPitch = kColumns + 1;

// Blocks of kThreads on a multiprocessor that a kernel's registers allow. `weight`: rows of the
// output gradient stay, and filters do not; more places are kept.
constexpr int resident_blocks(const Access& a, bool weight) {
  const int operands = weight ? 2 * a.ring() : 2 * a.kernel_h * a.parts;
  const int sums = weight ? 4 * a.kernel_h * a.parts
                          : 4 * a.ring() * a.result_rows() * (a.mode == Mode::phases ? 2 : 1);
  const int windows = 8 * a.windows() * a.source_rows();
  const int rest = weight ? 66 : a.mode == Mode::strided ? 58 : 36;
  const int registers = operands + sums + windows + rest;
  return registers <= 72    ? 7
         : registers <= 96  ? 5
         : registers <= 120 ? 4
         : registers <= 160 ? 3
                            : 2;
}

// Whether a kernel is compiled for channels_last images. Lower filters are better off in strip:
// none of 20 with one row that were tried was faster here, 6 of 35 with two were, 1 of 22 with
// three. Of their weight gradients, none of 15 with four rows was, and 1 of 12 with five.
constexpr bool takes_pixels(const Access& a, bool weight) {
  if (weight) return a.kernel_h >= 6;
  return a.kernel_h * (a.mode == Mode::dense ? a.parts : 1) >= 4;
}
// Their blocks are of twice the threads where registers allow several of those:
// they share planes that take much of the shared memory. 14x14 k7 took 44.8 us with 128, and takes
// 38.9.
constexpr int pixel_threads(const Access& a) {
  return resident_blocks(a, false) >= 4 ? 2 * kThreads : kThreads;
}
constexpr int resident_pixel_blocks(const Access& a) {
  return resident_blocks(a, false) * kThreads / pixel_threads(a);
}
// Of a weight gradient.
constexpr int pixel_sum_threads(const Access& a) {
  return resident_blocks(a, true) >= 4 ? 2 * kThreads : kThreads;
}
constexpr int resident_pixel_sum_blocks(const Access& a) {
  return resident_blocks(a, true) * kThreads / pixel_sum_threads(a);
}

// Everything that follows from a problem and its tiling. A unit is some channels of some images, or
// a band of rows of one channel. With phases, results are steps: two rows or columns each.
struct Geometry {
  Window h, w;
  Access access;
  int warps = kWarps;  // of a block
  int sharers = 1;     // of them, of one channel: weight gradients of channels_last images
  int channels = 1;    // of a unit
  int groups = 1;      // of channels
  int images = 1;      // of a unit
  int image_blocks = 1;
  int rows = 1;         // results of a unit along h
  int source_rows = 1;  // that they read, at most
  int result_rows = 1;  // of the tensor: with phases, two for a step
  int bands = 1;
  int columns = kColumns;  // of a strip
  int strips = 1;
  int row_classes = 1;       // rows modulo the dilation
  int walks = 1;             // that a class is cut into, so that all warps have work
  int walk_rows = 1;         // of a walk
  int batches = 1;           // of kPositions, of a channel of a unit
  bool holds_image = false;  // a window, all columns of an image
  int shift = 0;             // columns of a window before the first that its strip reads
  int end = 0;               // where the columns of an image end, in its rows
  // Of channels_last images alone, whose planes are laid out here: rows of `w.source` columns, all
  // pairs, the first of which may be there for that alone (`lead`), and counts as padding; and
  // elements from one plane to the next.
  int lead = 0;
  int source_plane = 0;
  int result_plane = 0;
  // Shared memory, in bytes: a margin; stages of an image's source runs and perhaps its runs of the
  // output gradient; then filters and results, or sums; barriers last.
  int stages_at = kMarginBytes;
  int source_run = 0;  // of an image
  int result_run = 0;
  int stage_bytes = 0;
  int rest_at = 0;
  int results_at = 0;
  int result_bytes = 0;  // from one place for results to the other; 0 where there is one
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr bool whole() const { return bands == 1; }
  // Where the window of a strip begins, and where what is read of it ends.
  constexpr int source_column(int strip) const {
    return strip * columns * w.stride - w.pad - shift;
  }
  constexpr int last_column(int strip) const {
    return std::min(end, source_column(strip) + shift + w.reach(columns));
  }
  // Pieces of work of a unit, one for a warp at a time.
  constexpr int tasks() const { return channels * channel_tasks(); }
  constexpr int channel_tasks() const { return row_classes * walks * batches; }
  // Where weight gradients of channels_last images have planes of the output gradient, and their
  // warps' products, after so many sums of each channel and sharer.
  constexpr int grad_at() const { return stages_at + images * source_run; }
  constexpr int products_at(int sums) const {
    return rest_at + 4 * sums * std::max(channels, warps);
  }
  // Steps of a walk: its first result is not whole before `ring` steps.
  constexpr int steps() const { return walk_rows + access.ring() - 1; }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::toeplitz
