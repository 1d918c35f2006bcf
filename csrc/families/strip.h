// The strip family: channels_last, on the FMA units, straight from global memory. Neighbouring
// lanes are neighbouring channels, so that every load is coalesced, whatever the image. Shared by
// its planner and its kernels.
#pragma once

#include "channel_groups.h"
#include "unit.h"

namespace dwconv::strip {

inline constexpr int kMaxKernel = 11;

// Of a block. A weight gradient's are larger, and leave fewer partial sums.
constexpr int most_threads(Pass pass) { return pass == Pass::backward_weight ? 256 : 128; }

// What a thread computes at a time: results of `rows` x `columns`, of one channel or of a pair;
// of the input gradient with stride 2, steps of the output gradient, each of which is two results
// along an axis. Filter rows are taken so many at a time.
struct Shape {
  int rows, columns, filter_rows;
  constexpr bool operator==(const Shape&) const = default;
};

// Two channels a thread where their number is even and the filter leaves registers for it.
constexpr bool has_pairs(Pass pass, int kernel_w) {
  return kernel_w <= (pass == Pass::backward_weight ? 3 : 5);
}

// Forward pass, and input gradient with stride 1: tiles of so many rows. Of 286 random problems in
// channels_last, tiles of 5 to 7 rows took 1.11 times as long as those of 4, which spill nothing;
// low ones are faster where images are few, and where a filter is small: together 1.15 times. With
// stride 2 filters up to 5 wide have low ones alone, the choice for five of six: 46 random problems
// take 0.5 % longer, and a sixth of the kernels is saved.
inline constexpr int kRows = 4;
inline constexpr int kLowRows = 2;
constexpr bool has_high_tiles(int kernel_w, int stride) { return stride == 1 || kernel_w > 5; }
constexpr Shape convolution_shape(int kernel_w, int stride, bool pair, int rows) {
  constexpr int filter_rows[kMaxKernel + 1] = {0, 4, 2, 3, 4, 5, 3, 4, 3, 3, 3, 3};
  const int columns = pair || stride == 2 ? 4 : kernel_w <= 5 ? 6 : kernel_w <= 8 ? 7 : 5;
  return {rows, columns, pair && kernel_w >= 4 ? 3 : filter_rows[kernel_w]};
}
// What registers leave for rows on their way.
constexpr int row_registers(int kernel_w, bool pair, int rows) {
  return rows == kLowRows ? 48 : pair && kernel_w >= 3 ? 24 : 0;
}
constexpr int sum_row_registers(int kernel_w, bool pair) { return pair || kernel_w > 4 ? 24 : 0; }
// Input gradient with stride 2; filter rows in pairs.
inline constexpr Shape kPhaseShape{2, 2, 1};
// Weight gradient: its sums stay in registers, so a thread has some filter rows, and others of its
// block the rest.
constexpr int most_sum_rows(int kernel_w) {
  return kernel_w == 1 ? kMaxKernel : kernel_w <= 5 ? std::max(kernel_w, 3) : kernel_w == 7 ? 7 : 3;
}
constexpr Shape sum_shape(int kernel_h, int kernel_w, int stride, bool pair) {
  const int most = most_sum_rows(kernel_w);
  const int filter_rows = kernel_h == 1 ? 1 : kernel_h <= 3 || kernel_h > most ? 3 : most;
  const int columns = pair || stride == 2 ? 4 : kernel_w <= 5 ? 6 : kernel_w <= 8 ? 7 : 5;
  return {4, columns, filter_rows};
}

// Blocks of most_threads() on a multiprocessor that a kernel's registers allow: of 65,536, a thread
// may take 80, 96 or 128.
constexpr int resident_blocks(Pass pass, int kernel_w, bool pair) {
  if (pass == Pass::backward_weight) return !pair && kernel_w <= 4 ? 3 : 2;
  return kernel_w <= (pair ? 2 : 4) ? 5 : 4;
}

// Shared memory of a block, so that most of a multiprocessor's is left to its L1.
inline constexpr int kMostShared = 48 << 10;

// Elements of filters that a thread waits for at a time.
inline constexpr int kFilterBatch = 8;

// Sums of a weight gradient that are added over a block's threads at a time.
inline constexpr int kSumBatch = 8;

// Everything that follows from a problem, the channels of a block and its threads.
struct Geometry {
  Window h, w;  // of the input gradient with stride 2: results are steps, kernels are halved
  bool pair = false;
  Shape shape{1, 1, 1};
  int width = 1;           // channels of a block
  int vectors = 1;         // threads side by side, on those channels
  int groups = 1;          // of channels
  int roles = 1;           // backward_weight: groups of threads, each with its filter rows
  int slots = 1;           // tiles that the threads of a role take at a time
  int row_classes = 1;     // rows modulo the dilation
  int column_classes = 1;  // columns modulo the dilation
  int row_tiles = 1;       // tiles of a class, one below the other
  int strips = 1;          // tiles side by side
  std::int64_t items = 0;  // tiles of all images, for one group of channels
  int shared_bytes = 0;

  constexpr int threads() const { return round_up(roles * slots * vectors, 32); }
};

// `slots` as many as `threads` allow; `rows` of a convolution's tiles, others have their own.
Geometry geometry(const Problem& problem, int width, int threads, int rows);

}  // namespace dwconv::strip
