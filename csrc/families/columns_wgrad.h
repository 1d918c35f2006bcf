// The columns family: weight gradient. For one column of the filter, products add up rows of the
// image times rows of the output gradient over columns, of all images; what a tap gets is a
// diagonal of the sums. The next column of the filter is another address, for planes are turned
// round. Shared by its planner and its kernels.
//
// A block has some columns of the filter of one channel, and a share of the images. Its warps have
// some of these columns each, and where they are few some of the images' columns.
#pragma once

#include "columns.h"
#include "slices.h"

namespace dwconv::columns {

inline constexpr int kSumWarps = 8;
inline constexpr int kMostSumThreads = 32 * kSumWarps;
inline constexpr int kMostSumSteps = 4;
inline constexpr int kMostSumRows = kMostSumSteps * kStep;  // of images and output gradients
inline constexpr int kSquare = kStep * (kStep + 1);         // floats: diagonals are in other banks

// What a kernel is compiled for: images and output gradients of so many times 16 rows, of which
// those that taps have in common are no further apart than `reach` times 16; and columns of the
// filter of a warp.
struct SumShape {
  int steps = 1;
  int reach = 0;
  int taps = 4;

  // Of a column of the filter, squares of 16 rows of the image by 16 of the output gradient.
  constexpr int squares() const { return steps + 2 * reach * steps - reach * (reach + 1); }
  // Blocks of a multiprocessor whose sums its registers hold.
  constexpr int resident() const { return taps * squares() <= 10 ? 2 : 1; }
  constexpr bool operator==(const SumShape&) const = default;
};

// The kernels that there are: of the same steps and reach, those of more columns last.
inline constexpr SumShape kSumShapes[] = {{1, 0, 4}, {2, 1, 2}, {3, 1, 1}, {3, 2, 1},
                                          {4, 1, 1}, {4, 1, 2}, {4, 2, 1}, {4, 3, 1}};

struct SumGeometry {
  Window h, w;  // without the taps that meet nothing
  int first_tap_row = 0, first_tap = 0;
  SumShape shape;
  int tile_taps = 1;  // columns of the filter of a block
  int tap_tiles = 1;
  int tap_groups = 1;        // warps with different ones
  int splits = 1;            // and with the same
  int images = 1;            // of a unit, a power of two
  int step_columns = kStep;  // of a product, of each image
  int rows = 1, bands = 1;
  int parts = 1;  // of a plane, for warps that turn it round
  // Shared memory, in bytes: planes of the images and of their output gradients, as they come; the
  // same turned round; sums of the filter's columns; a square of sums for each warp; a barrier.
  int source_step = 0, result_step = 0;
  int grad_at = 0;
  int lead = 0;
  int source_plane = 0, result_plane = 0;  // turned
  int source_at = 0, result_at = 0;
  int sums_at = 0;
  int squares_at = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a channel

  constexpr int warps() const { return tap_groups * splits; }
  constexpr int tiles() const { return tap_tiles; }
  // Products that a unit adds to each sum of a warp, at most.
  constexpr int unit_steps() const { return ceil_div(ceil_div(w.result, step_columns), splits); }
};

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling);

SumPlan plan_sums(const Problem& problem, const Arch& arch);

}  // namespace dwconv::columns
