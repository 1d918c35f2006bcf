// Rows of channels_last images that the copy engine of sm_90 brings into a ring in shared memory:
// what families have in common that work on them, their planners and their kernels.
#pragma once

#include "channel_groups.h"
#include "unit.h"

namespace dwconv::rows {

struct Filter {
  int h, w;
  constexpr bool operator==(const Filter&) const = default;
};

inline constexpr int kCopyBytes = 16;
// A box that the copy engine brings has at most so many columns, and begins at a multiple of so
// many bytes.
inline constexpr int kMostPixels = 256;
inline constexpr int kMostStep = 8;  // from one column of a box to the next
inline constexpr int kBoxAlignment = 128;
// How many rows after its use a row's place is filled anew.
constexpr int lag_of(int stages) { return stages > 4 ? 2 : 1; }
// Barriers of the ring: of each row, that it has come and that it has been read. Stages follow.
constexpr int control_bytes(int stages, int alignment = kBoxAlignment) {
  return round_up(2 * 8 * stages, alignment);
}

// What a thread or a warp's lanes compute of a row: results of so many columns and neighbouring
// channels.
struct Shape {
  int columns, channels;
};

// Everything that follows from a problem and its tiling. With a dilation, the rows of results whose
// number is the same modulo the dilation read rows of their own, and so do columns: each class of
// them is an image by itself, without a dilation.
struct Geometry {
  Window h, w;
  int row_classes = 1;
  int column_classes = 1;
  Shape shape{1, 1};
  int width = 1;    // channels of a block
  int groups = 1;   // of channels
  int vectors = 1;  // threads side by side, on those channels
  int lanes = 1;    // that there is room for
  int images = 1;   // of a unit
  int image_blocks = 1;
  int strips = 1;  // threads' columns side by side in a tile
  int column_tiles = 1;
  int band = 1;  // rows of results of a unit
  int bands = 1;
  int first_step = 0;   // the first row that a unit passes over: those before it are not there
  int steps = 1;        // and how many, whether they are there or not
  int pixels = 1;       // columns of the source that a tile reads
  int grad_pixels = 0;  // backward_weight: and of the output gradient
  int pixel_bytes = 1;  // in shared memory
  int grad_at = 0;      // in a stage
  int stage_bytes = 0;
  int place_bytes = 0;  // for a row of results on its way out, where they are collected
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a group of channels
  int warps = 0;           // of a block, where it is not that each thread has a strip of a vector

  constexpr int threads() const {
    return warps > 0 ? warps * 32 : round_up(images * strips * vectors, 32);
  }
};

struct Tiles {
  int width, images, strips, band;
};
constexpr Tiles tiles_of(const Plan& plan) {
  const Tiling& t = plan.tiling;
  return {t.planes, t.images, t.columns, t.rows};
}
// What follows but for bytes of shared memory, with threads or warps of any shape.
Geometry units_of(const Problem& problem, const Tiles& tiles, const Shape& shape);

}  // namespace dwconv::rows
