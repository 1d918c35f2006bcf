// The weight gradient of the banded family: a product's sums are 16 columns x 8 rows of the
// filter's gradient, its operands a row of the image, each column one further on, and 8 rows of the
// output gradient, of 16 columns. Shared by its planner and its kernels.
//
// A block has a tile of the filter of one channel, and a share of the images or of bands of their
// rows. Each of its warps takes every eighth row of the image.
#pragma once

#include "row_pieces.h"
#include "slices.h"
#include "unit.h"

namespace dwconv::banded {

inline constexpr int kSumWarps = 8;
inline constexpr int kSumThreads = 32 * kSumWarps;
inline constexpr int kSumBlocks = 2;  // of a multiprocessor
inline constexpr int kTileW = 16;     // columns of a filter, of a product
inline constexpr int kTileH = 8;      // rows of a filter, of a product
inline constexpr int kStep = 16;      // columns of the output gradient, of a product
// Products along a row, whose operands are in registers.
inline constexpr int kFewestAtOnce = 2, kMostAtOnce = 4;

// What a kernel is compiled for: products side by side in a tile of the filter, and those along a
// row that are made at once.
struct SumShape {
  int columns = 1;
  int rows = 1;
  int steps = 1;
  constexpr int tile_w() const { return columns * kTileW; }
  constexpr int tile_h() const { return rows * kTileH; }
  // Floats of a warp's sums: of a column of the filter an odd number, so that they are in different
  // banks.
  constexpr int pitch() const { return tile_h() + 1; }
  constexpr int sums() const { return tile_w() * pitch(); }
};

struct SumGeometry {
  Window h, w;
  SumShape shape;
  int tiles_w = 1, tiles_h = 1;  // of the filter
  int images = 1;                // of a unit
  int rows = 1;                  // of the image, of a unit
  int bands = 1;
  int chunks = 1;  // of a row, of `shape.steps` products each
  // Shared memory, in bytes: a row of zeros; the warps' sums; stages of rows of the image and of
  // the output gradient.
  int source_pitch = 0;
  int result_pitch = 0;
  int result_rows = 0;  // of a unit's image, at most
  int result_at = 0;    // of an image's part of a stage
  int image_bytes = 0;
  int stage_bytes = 0;
  int sums_at = 0;
  int stages_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a channel

  constexpr int tiles() const { return tiles_w * tiles_h; }
  constexpr int steps() const { return chunks * shape.steps; }
};

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling);

SumPlan plan_sums(const Problem& problem, const Arch& arch);

}  // namespace dwconv::banded
