// The lines family: weight gradients of large filters of 16-bit tensors on the tensor cores, whose
// products add over the rows of images. The sums of a product are 16 columns of the image x 8
// columns of the output gradient, for one row of the filter, and all on a diagonal belong to the
// same tap. So 8 columns and those of the image that their taps reach make a handful of sums, the
// same for all columns of all images. Shared by its planner and its kernels.
//
// A block has a tile of the filter of one channel, and a share of the images or of bands of their
// rows. Its warps have some rows of the tile each, and where these are few some of the images'
// rows.
#pragma once

#include "row_pieces.h"
#include "slices.h"
#include "unit.h"

namespace dwconv::lines {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kResident = 2;   // of a multiprocessor
inline constexpr int kStepRows = 16;  // of the output gradient, of a product
inline constexpr int kMostSpans = 4;
inline constexpr int kScratchPitch = 9;  // floats of 8 sums, so that diagonals are in other banks

// What a kernel is compiled for: products side by side that 8 columns of the output gradient take
// for a row of the filter, and blocks of 8 such columns that are in registers at a time.
struct Shape {
  int spans = 1;
  int blocks = 4;

  // Rows of the filter in either half of a warp's, at most: registers hold the sums of as many.
  constexpr int half() const { return spans == 1 ? 4 : 2; }
  // Blocks of 8 columns of the image that those of the output gradient meet.
  constexpr int image_blocks() const { return blocks + 2 * spans - 1; }
  constexpr int scratch() const { return 16 * spans * kScratchPitch; }  // floats, of a warp
};

// The kernels that there are: for the widest filters without the last.
inline constexpr int kMostBlocks = 7;
inline constexpr int kBlocks[] = {4, 5, kMostBlocks};

struct Geometry {
  // The filter without the taps that meet no image: those before are so many.
  Window h, w;
  int first_tap_row = 0, first_tap = 0;
  Shape shape;
  int tiles_w = 1, tiles_h = 1;  // of the filter
  int tile_w = 1, tile_h = 1;    // taps of a tile
  int lead = 0;                  // columns before a tile's first one, for wider copies
  int groups = 1;                // of blocks of columns of the output gradient
  // A warp has so many neighbouring rows from either half of the tile: those at the filter's edges
  // meet the fewest rows of the image. So many warps have different rows, and so many the same, of
  // other rows of images.
  int half_rows = 1;
  int row_groups = 1;
  int splits = 1;
  int half_tile = 1;  // rows of half of the tile
  int images = 1;     // of a unit: 1 << image_bits
  int image_bits = 0;
  int rows = 1;  // of the output gradient, of a unit
  int bands = 1;
  // Shared memory, in bytes: a row of zeros; the warps' sums; room to add diagonals in; stages of
  // rows of the image and of the output gradient.
  int source_bytes = 0;  // of a copy of a piece of the image's rows
  int source_pitch = 0, source_rows = 0, source_image = 0;
  int result_pitch = 0, result_image = 0;
  int result_at = 0;  // of a stage
  // Rows of a step of 16 positions; from one step of a warp to the next; and as bytes. So that
  // kernels, whose registers are full, need not work them out each time.
  int step_rows = 1;
  int least_row = 0;  // of the image, for a step's first position: before it no row meets the image
  int turn_rows = 1, turn_source = 0, turn_result = 0;
  int half_bytes = 0;    // of half of the tile
  int result_bytes = 0;  // of a row's groups
  int stage_bytes = 0;
  int sums_at = 0;
  int scratch_at = 0;
  int stages_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a channel

  constexpr int tiles() const { return tiles_w * tiles_h; }
  constexpr int positions() const { return images * rows; }
  // Products that a unit adds to each sum of a warp, at most.
  constexpr int unit_steps() const {
    return ceil_div(ceil_div(positions(), kStepRows), splits) * groups * shape.blocks;
  }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::lines
