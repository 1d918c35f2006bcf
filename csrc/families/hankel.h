// The hankel family: weight gradients of large filters of 16-bit tensors on the tensor cores,
// images of any size. A row of the image makes a Hankel matrix, each row of which begins one
// element further on: the left operand of products whose sums are 16 columns x 8 rows of the
// filter's gradient. The right one are 8 rows of the output gradient, of 16 columns. Shared by its
// planner and its kernels.
//
// A block has a tile of the filter of one channel, and a share of the images or of bands of their
// rows. Each of its warps takes every eighth row of the image. Where rows are whole pieces of 16
// bytes, the copy engine of sm_90 brings them.
#pragma once

#include "slices.h"
#include "unit.h"

namespace dwconv::hankel {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kResident = 2;  // blocks of a multiprocessor, as far as registers go
inline constexpr int kStep = 16;     // columns that a product adds over
inline constexpr int kTileH = 8;     // rows of a product
// Of shared memory: for rows as they lie in memory, and for those that the copy engine brings.
inline constexpr int kRunStages = 2, kBoxStages = 3;

// Products side by side, and one below the other.
struct Tile {
  int columns, rows;
};

// What a kernel is compiled for: a tile of products, and those along a row that are made at once.
struct Shape {
  int columns = 1;
  int rows = 1;
  int steps = 1;
  constexpr bool operator==(const Shape&) const = default;
  constexpr int tile_w() const { return columns * kStep; }
  constexpr int tile_h() const { return rows * kTileH; }
};

// A row of the image, or as much of it as is multiplied at once, as a warp copies it four times: a
// lane has two words. Copies of odd and of even elements lie so that lanes that read different ones
// meet different banks.
inline constexpr int kPairBytes = 8;
inline constexpr int kCopiesBytes = 2 * (2 * 32 * kPairBytes + 64);

// Barriers, and what a lane may read before the first row.
inline constexpr int kRunsBefore = 32;

// Products along a row, whose operands are in registers.
inline constexpr int kFewestAtOnce = 2;
// Products side by side in a tile of the filter: there are kernels for these.
inline constexpr Tile kTiles[] = {{1, 2}, {1, 4}, {2, 1}, {2, 2}, {2, 3}, {2, 4}, {3, 3}, {3, 4}};
// More do not fit the registers.
constexpr int most_at_once(const Tile& tile) { return tile.columns * tile.rows < 12 ? 4 : 3; }

// Floats of a warp's sums for a tile of the filter: of one of its columns an odd number, so that
// they are in different banks.
constexpr int sums_pitch(const Shape& shape) { return shape.tile_h() + 1; }
constexpr int sums_of(const Shape& shape) { return shape.tile_w() * sums_pitch(shape); }

struct Geometry {
  Window h, w;
  Shape shape;
  int tiles_w = 1, tiles_h = 1;  // of the filter
  int images = 1;                // of a unit
  int rows = 1;                  // of the image, of a unit
  int bands = 1;
  int source_rows = 1;  // that a tile takes to results, at most
  int span = 1;         // columns of the output gradient, of a unit
  int spans = 1;
  int chunks = 1;      // of a row, of `shape.steps` products each
  bool boxes = false;  // the copy engine brings rows with zeros around them; else as they are
  // Shared memory, in bytes: stages of rows of images and of output gradients; the latter laid out,
  // for two units; a row of zeros; the warps' copies; their sums.
  int source_pitch = 0;
  int source_image_bytes = 0;
  int result_pitch = 0;
  int result_rows = 0;         // of a unit's image, at most
  int result_image_bytes = 0;  // as products read them
  int run_bytes = 0;           // as they come, if that is not the same
  int result_at = 0;           // of a stage
  int stage_bytes = 0;
  int stages_at = 0;
  int gradients_at = 0;
  int zeros_at = 0;
  int copies_at = 0;
  int sums_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a channel

  constexpr int tiles() const { return tiles_w * tiles_h; }
  constexpr int steps() const { return chunks * shape.steps; }
  // Whether of the last product's columns 8 lie beyond the row's end.
  constexpr bool half() const { return steps() * kStep - span >= kStep / 2; }
  constexpr int box_bytes() const { return images * (source_image_bytes + result_image_bytes); }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::hankel
