// The weight gradient of the batched family: each lane of a warp has an image, and in its registers
// the sums of 4 rows of the filter, and of the 15 taps that 8 columns of the image and 8 of the
// output gradient can be apart by. Shared by its planner and its kernels.
//
// A block has all of a filter's sums, of some channels and a share of the images, one task of a
// warp after the other. After each part of the images a warp's sums go to shared memory.
#pragma once

#include "batched.h"
#include "slices.h"

namespace dwconv::batched {

inline constexpr int kTapRows = 4;           // of the filter, of a task
inline constexpr int kApart = 2 * kColumns;  // 15 taps, and one more that there is not
inline constexpr int kSums = kTapRows * kApart;

struct SumGeometry {
  Window h, w;
  int first_tap_row = 0, tap_rows = 1;  // of the filter, those that meet the image
  int channels = 1;                     // of a block
  int groups = 1;                       // of channels
  int images = kLanes;                  // in shared memory at a time
  int parts = 1;                        // of all images
  int tap_groups = 1;                   // of rows of the filter
  // By how many blocks of 8 columns image and output gradient can be apart: from the first on.
  int first_apart = 0, aparts = 1;
  // Shared memory: quads of the image and of the output gradient, as in Geometry; the sums of all
  // tasks; those of the bias.
  int source_quads = 2, result_quads = 2;  // of a row; whole blocks of 8 columns
  int quad_pitch = 1;
  int result_at = 0;  // in bytes
  int sums_at = 0;
  int bias_at = 0;
  int shared_bytes = 0;

  constexpr int tasks() const { return channels * tap_groups * aparts; }
  constexpr int source_blocks() const { return source_quads / 2; }
  constexpr int result_blocks() const { return result_quads / 2; }
};

SumGeometry sum_geometry(const Problem& problem, const Tiling& tiling);

SumPlan plan_sums(const Problem& problem, const Arch& arch);

}  // namespace dwconv::batched
