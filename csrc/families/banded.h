// The banded family: large filters of 16-bit tensors on the tensor cores, which multiply 16
// positions x 8 or 16 columns of the image by the Toeplitz matrix of a filter row. Shared by its
// planner and its kernels.
//
// Columns are taken in blocks of 8, of the image and of the results; a filter row makes a band of 8
// x 8 matrices that only depend on how far the two blocks are from each other. A position is a row
// of one image, or of a band of its rows where images are few; a warp has 16 of them at a time,
// some neighbouring rows of their results and all columns of a tile, and goes over the filter's
// rows.
#pragma once

#include "row_pieces.h"
#include "unit.h"

namespace dwconv::banded {

inline constexpr int kWarps = 16;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kPositions = 16;
inline constexpr int kColumns = 8;  // of a block of columns
inline constexpr int kMaxReach = 4;
inline constexpr int kMaxBlocks = 16;  // of columns of a tile
inline constexpr int kMostStages = 8;
// Whether a block's first units come one after the other, not all at once: two of 106 KB for each
// multiprocessor are 28 MB, which take the memory 9 us. Rows of an odd number of elements are
// waited for as they come: six units of 103 x 103 one by one took longer than all that is done with
// them.
constexpr bool come_one_by_one(int stage_bytes, int copy_bytes) {
  return stage_bytes >= 32 << 10 && copy_bytes >= kWordBytes;
}

// What a kernel is compiled for: blocks of columns of a tile, and how many of them to either side
// of a result's own its filter reaches.
struct Shape {
  int blocks = 1;
  int reach = 0;

  // Rows of results of a warp at a time. With more, N64 C512 14x14 k27 takes 44 us for 36: there
  // are too few tasks to go round.
  constexpr int rows() const { return blocks == 1 ? 4 : blocks == 16 ? 1 : 2; }
  // Bytes of a row of the tile, and of a filter's row, which is there twice: lanes read pairs of
  // its elements, half of them from an odd one on.
  constexpr int row_bytes() const { return blocks * kColumns * 2; }
  // A row of zeros, as long as the pairs of blocks that lanes read.
  constexpr int zero_bytes() const { return round_up(row_bytes(), 2 * kColumns * 2); }
  constexpr int filter_row() const { return kColumns * (2 * reach + 2); }  // elements
  constexpr int filter_bytes() const { return 2 * filter_row() * 2; }
};

// The kernels that there are. No block is further away than a tile has others.
inline constexpr int kBlocks[] = {1, 2, 4, 7, 8, 16};
constexpr int most_reach(int blocks) { return std::min(blocks - 1, kMaxReach); }

// Everything that follows from a problem and its tiling. A unit is a tile of columns and a segment
// of rows, of one channel of some images.
struct Geometry {
  Window h, w;
  Shape shape;
  // Image and results lie side by side in one row of blocks, moved by whole blocks so that a filter
  // reaches as far to either side of its result's: the first block of either.
  int image_block = 0;
  int result_block = 0;
  int tiles = 1;  // of columns
  int pad = 0;    // columns that a filter begins before its result, as they lie there
  // Of the filter, the rows and columns that meet the image at all.
  int first_tap_row = 0, tap_rows = 0;
  int first_tap = 0, taps = 0;
  int images = 1;
  int image_blocks = 1;  // blocks of images
  int bands = 1;         // of an image, as positions; 1 << band_bits
  int band_bits = 0;
  int rows = 1;  // results of a unit along h
  int segments = 1;
  int source_rows = 1;  // that they read, at most
  int band_rows = 1;    // of results
  int bands_above = 0;  // that padding above the image may take
  int row_groups = 1;   // of a band, one for a warp at a time
  int position_groups = 1;
  // Shared memory, in bytes: a row of zeros; stages of planes and a filter; barriers last.
  int plane_bytes = 0;
  int skew_bytes = 0;  // that a plane's rows are moved by for each band before their own
  int filters_at = 0;  // of a stage
  int stage_bytes = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr int tasks() const { return row_groups * position_groups; }
  // Of the padded row, what a tile has of the image and of results.
  constexpr int first_block(int tile) const { return tile * (shape.blocks - 2 * shape.reach); }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::banded
