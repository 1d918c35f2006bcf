// The diagonal family: channels_last in 16 bits, on the tensor cores, from rows that the copy
// engine brings. Nothing is transposed: the columns of a product's first operand are 4 channels x 4
// pixels, those of its result 4 channels x 2 columns, and the filter between them is zero where
// the channels differ. Shared by its planner and its kernels.
#pragma once

#include "rows.h"

namespace dwconv::diagonal {

using rows::Filter;
using rows::Geometry;
using rows::Tiles;

// Square filters that kernels are compiled for; of the narrowest, forward passes with stride 2 are
// 6 % faster in the ring family.
inline constexpr int kKernels[] = {3, 5, 7};
constexpr bool is_compiled(Pass pass, const Filter& filter, int stride) {
  for (const int kernel : kKernels) {
    if (filter == Filter{kernel, kernel})
      return stride == 1 || (pass == Pass::forward && kernel > 3);
  }
  return false;
}

// A warp takes so many positions, of two neighbouring columns each, and so many channels.
inline constexpr int kPositions = 16;
inline constexpr int kOctet = 8;
inline constexpr int kMostOctets = 8;

inline constexpr int kStages = 8;
inline constexpr int kStageAlignment = 1024;
// Rows of results on their way out; their barriers come behind those of the stages.
inline constexpr int kPlaces = 4;
inline constexpr int kResultBarriers = 2 * 8 * kStages;
static_assert(kResultBarriers + 2 * 8 * kPlaces <= rows::control_bytes(kStages, kStageAlignment));

// Pairs of pixels that the two columns of a position read.
constexpr int pixel_pairs(int kernel_w, int stride) { return (kernel_w + stride + 1) / 2; }

// Of a multiprocessor, as the registers of a kernel allow: of 65,536, the filter and the sums take
// most. A block may have them all.
constexpr int most_threads(const Filter& filter) {
  return filter.h == 7 ? 384 : filter.h == 5 ? 512 : 768;
}

// Neighbouring positions are of so many images in turn: then 8 of them begin at pixels that differ
// modulo 8, as far as there are images.
constexpr int interleave(int stride) { return 2 * stride; }

// Weight gradient: a warp takes so many columns of an image, in chunks of 4 pixels, and filters of
// so many columns at most. Rows come in pairs, and the rows of the input and of the output gradient
// that meet are so many pairs apart.
inline constexpr int kColumns = 8;
inline constexpr int kChunks = kColumns / 4;
inline constexpr int kShifts = 8;
constexpr int offsets(int kernel_h) { return (kernel_h + 1) / 2; }
inline constexpr int kMostOffsets = 4;
inline constexpr int kMostSumThreads = 512;
// Elements of a gradient, over its columns and rows, that the tensor cores add up in a row: 512
// products, since they cut what does not fit a sum's 24 bits, always towards zero (see toeplitz.h).
// Larger problems have more blocks than run at a time.
inline constexpr int kMostAdded = 512 / kChunks * kColumns * 2;

// What its warps leave in shared memory in the end: sums of parities of channels, offsets, rows of
// both, channels and shifts; and those of the bias.
inline constexpr int kBiasSums = 2 * kMostOffsets * 2 * 2 * 4 * kShifts;
inline constexpr int kWarpSums = kBiasSums + 2 * 2 * 4;

Geometry geometry(const Problem& problem, const Tiles& tiles);

}  // namespace dwconv::diagonal
