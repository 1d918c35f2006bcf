// The columns family: forward pass and input gradient of 16-bit images on the tensor cores, which
// multiply the Toeplitz matrix of a filter column by columns of an image. Shared by its planner and
// its kernels.
//
// Planes are turned round on their way through shared memory, so that a column of the image lies
// there as a row does elsewhere: the next column of the filter is another address, whatever the
// width of the images, and results come out in the order of their rows. A tap of 16 rows of results
// and 16 of the image depends on how far these are apart alone.
#pragma once

#include "unit.h"

namespace dwconv::columns {

inline constexpr int kMostThreads = 256;
inline constexpr int kBlock = 8;  // columns of a product
inline constexpr int kStep = 16;  // rows of a product, of the image and of results

// What a kernel is compiled for: tiles of so many products in a row and in a column.
struct Shape {
  int steps = 1;

  constexpr int rows() const { return steps * kStep; }
  // Blocks of columns of a warp at a time.
  constexpr int blocks() const { return steps > 2 ? 4 : 8; }
  // Bytes from a turned column of so many rows to the next. Lanes of a product's columns read 16
  // bytes each: in banks of their own, for columns are an odd number of 16 bytes apart.
  constexpr int column_bytes() const { return 2 * rows() + 16; }
};

// Everything that follows from a problem and its tiling. A unit is a band of rows of some images,
// of some channels.
struct Geometry {
  Window h, w;  // without columns of taps that meet nothing
  int first_tap = 0;
  Shape shape;
  int channels = 1;  // of a unit
  int groups = 1;    // of channels
  int images = 1;
  int image_blocks = 1;
  int rows = 1;  // of results
  int bands = 1;
  // What a warp has at a time: a tile of rows of blocks of columns, next to each other and in
  // several images, 1 << image_bits.
  int image_bits = 0;
  int tiles = 1;          // of a band's results
  int image_groups = 1;   // of a unit
  int column_groups = 1;  // of an image
  int tasks = 1;          // of a unit, one for a warp
  int source_tiles = 1;   // of the rows that they read
  int parts = 1;          // of a plane, for warps that turn it round
  // Taps of a filter column and zeros around them, twice, the second time one element on: lanes
  // read pairs, half of them from an odd one on.
  int copy_bytes = 0;
  int filter_column = 0;  // bytes of both
  int taps_bytes = 0;     // of a unit's filters
  // Shared memory, in bytes: stages of the images' planes, a run for the channels of each image,
  // and of filters, where results wait to leave when planes have been turned round; the taps;
  // planes turned round, with zeros between them; barriers last.
  int image_step = 0;  // of a stage
  int filters_at = 0;
  int stages_at = 0;
  int stage_bytes = 0;
  int results_at = 0;    // of a stage
  int result_bytes = 0;  // as if there was one place for them
  int taps_at = 0;
  int turned_at = 0;
  int turned_bytes = 0;
  int sheet_bytes = 0;  // of a tile of a plane
  int plane_bytes = 0, image_bytes = 0;
  int lead = 0;  // columns of zeros before a plane
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr bool whole() const { return bands == 1; }
  // That a unit reads, at most.
  constexpr int source_rows() const {
    return whole() ? h.source : std::min(h.source, h.reach(rows));
  }
  constexpr int blocks_across() const { return shape.blocks() >> image_bits; }
  constexpr int planes() const { return channels * images; }
};

// Elements of a filter column before its first tap, and after its last: those of a product that
// meets it.
inline constexpr int kTapMargin = 2 * kStep;

Geometry geometry(const Problem& problem, const Tiling& tiling);

// What a multiprocessor of an H100 takes to turn round 16 rows of a block of columns: as matrices,
// as pairs of elements or one by one.
constexpr double turn_cycles(int columns) {
  return columns % kBlock == 0 ? 1.94 : columns % 2 == 0 ? 3.3 : 5.2;
}

}  // namespace dwconv::columns
