// The outer family: weight gradients of narrow 16-bit images on the tensor cores, for filters that
// reach over much of them. A product takes a row of 16 images and one of their output gradients,
// and adds up, over the images, every column of the one times every column of the other: an outer
// product for each image. What a tap of the filter gets is then a diagonal of the sum. Shared by
// its planner and its kernel.
//
// A warp has one channel and some neighbouring rows of its filter, whose sums it keeps in registers
// over all units of its block's run.
#pragma once

#include "image_blocks.h"

namespace dwconv::outer {

inline constexpr int kImages = kBlockImages;
// Columns of an image and of its output gradient that there are kernels for, at most.
inline constexpr int kFewColumns = 8;
inline constexpr int kSomeColumns = 16;
inline constexpr int kMostColumns = 32;

// What a kernel is compiled for. columns: of an image or its output gradient, at most. even: rows
// begin at a multiple of 4 bytes, so that two elements are read at a time.
struct Shape {
  int columns = 16;
  bool even = false;

  // A row of 8 columns fills half of a product: it takes two neighbouring rows of the image.
  constexpr bool paired() const { return columns == kFewColumns; }
  constexpr int blocks_m() const { return columns == kMostColumns ? 2 : 1; }
  constexpr int blocks_n() const { return columns / 8; }
  // Rows of the filter of a warp: as many as registers hold the sums of. Of images of up to 8 x 8 a
  // warp has all rows.
  constexpr int rows() const { return paired() ? 14 : columns == kSomeColumns ? 7 : 4; }
  constexpr int warps() const { return columns == kMostColumns ? 8 : 16; }
  // Sums wait in shared memory for their diagonals to be added, so many rows at a time. A column
  // more than there are: a diagonal's are in other banks than the next one's.
  constexpr int rows_at_once() const { return paired() ? 14 : 1; }
  constexpr int pitch() const { return columns + 1; }
  constexpr int square() const { return 16 * blocks_m() * pitch(); }   // floats, of a row
  constexpr int squares() const { return rows_at_once() * square(); }  // of a warp
};

// Everything that follows from a problem and its tiling. A unit is some channels of 16 images.
struct Geometry {
  Window h, w;
  Shape shape;
  int source_plane = 1, result_plane = 1;  // elements
  int channels = 1;                        // of a unit
  int groups = 1;                          // of channels
  int images = kImages;
  int image_blocks = 1;
  int bands = 1;
  // Rows of the filter that meet the image at all, and warps that share them.
  int first_tap_row = 0, tap_rows = 0;
  int jobs = 1;
  // Shared memory, in bytes: stages of the images' and the output gradients' planes; a row of
  // zeros; the filters' sums, in float32; the warps' squares; barriers last. The channels of an
  // image are one run.
  int source_step = 0, result_step = 0;
  int stages_at = 0;
  int grad_at = 0;  // in a stage
  int stage_bytes = 0;
  int zeros_at = 0;
  int sums_at = 0;
  int squares_at = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr int warps() const { return channels * jobs; }
  constexpr int first_row(int job) const {
    return first_tap_row + shape.rows() * job;
  }  // its filter's
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::outer
