// The weight gradient of the direct family: a thread has the sums of 8 neighbouring columns of 4
// rows of the filter, and those of a row of the image take 8 columns of the output gradient at a
// time. Shared by its planner and its kernels.
//
// A block has a tile of the filter of one channel, and a share of the images, or of bands of their
// rows. The tile's threads are a warp or a group of its lanes; rows of the image are dealt out to
// the groups.
#pragma once

#include "channel_groups.h"
#include "direct.h"
#include "slices.h"

namespace dwconv::direct {

inline constexpr int kTapRows = 4;  // of the filter, of a thread
inline constexpr int kSums = kTapRows * kColumns;
// Products that a thread adds up before its sums go to others: as many as of other families.
inline constexpr int kMostSumProducts = static_cast<int>(dwconv::kMostProducts);

// The lanes of a tile of the filter. A lane's rows are `rows` apart, so that neighbouring lanes
// read neighbouring rows of the output gradient.
struct Lanes {
  int rows = 1;
  int columns = 1;

  constexpr int count() const { return rows * columns; }
  constexpr int groups() const { return 32 / count(); }  // of a warp
  constexpr int tile_h() const { return rows * kTapRows; }
  constexpr int tile_w() const { return columns * kColumns; }
};

struct SumGeometry {
  Window h, w;  // of the taps that meet the image
  int first_tap_row = 0;
  int first_tap = 0;
  Lanes lanes;
  int tiles_w = 1, tiles_h = 1;  // of the filter
  int images = 1;                // of a unit
  int rows = 1;                  // of the image, of a unit
  int bands = 1;
  int width = 1;  // columns of the output gradient, of a unit
  int parts = 1;
  int steps = 1;  // of a unit's row, of 8 columns
  // Shared memory. Pitches are in quads of floats, and odd: rows that follow each other begin in
  // different banks. A row of zeros, the sums that were left, rows of the image and of the output
  // gradient, whose place the sums of all threads take in the end.
  int source_pitch = 1;
  int result_pitch = 1;
  int result_rows = 1;  // of a unit's image, at most
  int sums_at = 0;      // in bytes
  int stage_at = 0;
  int result_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a channel

  constexpr int tiles() const { return tiles_w * tiles_h; }
};

// The lanes are the tiling's `tile_rows` and `columns`.
SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling);

SumPlan plan_sums(const Problem& problem, const Arch& arch);

}  // namespace dwconv::direct
