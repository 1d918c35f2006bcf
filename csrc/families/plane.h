// The plane family: planes of up to 16 x 16 and square filters with same padding. A lane computes a
// tile of results of one plane in registers: all of the plane, or what lies at one of its edges or
// corners. Shared by its planner and its kernels.
//
// A plane larger than a tile is cut in halves. The second half is walked from the far edge inwards,
// with the filter turned round: so the image ends where the tile begins, whichever the half, and
// taps in the padding are left out when the kernel is compiled.
#pragma once

#include "unit.h"

namespace dwconv::plane {

inline constexpr int kLanes = 32;        // a block of the forward pass and of the input gradient
inline constexpr int kMaxThreads = 128;  // of a weight gradient
inline constexpr int kTiles[] = {7, 8};  // sides of a tile
inline constexpr int kKernels[] = {3, 5, 7};
inline constexpr int kMaxSide = 16;

// What a kernel is compiled for. tile: results of a lane along either axis. halves: of a plane,
// side by side. exact: the plane is `halves` tiles wide and as high, so that nothing is tested.
struct Access {
  int tile = 7;
  int halves = 1;
  bool exact = false;
};

// An access as a type.
template <int tile_, int halves_, bool exact_>
struct Fixed {
  static constexpr Access value{tile_, halves_, exact_};
  static constexpr int tile = tile_;
  static constexpr int halves = halves_;
  static constexpr bool exact = exact_;
  // Rows and columns of the source that a tile reads.
  static constexpr int columns(int pad) { return halves == 1 ? tile : tile + pad; }
  static constexpr int rows(int pad) { return exact ? columns(pad) : tile + pad; }
};

// Blocks of kLanes, or of kMaxThreads of a weight gradient, on a multiprocessor that a kernel's
// registers allow.
constexpr int resident_blocks(const Access& a, int kernel, bool weight) {
  const bool large = a.tile == 8;
  const bool tests_halves = a.halves == 2 && !a.exact;
  if (weight)
    return kernel == 7 && (large || tests_halves) ? 3 : kernel == 3 && !tests_halves ? 5 : 4;
  if (kernel == 3 && !large && !tests_halves) return 20;
  return kernel == 7 && large ? 12 : 16;
}

// Everything that follows from a problem and its tiling. A unit is some channels of some images.
struct Geometry {
  int rows = 1;  // of a plane
  int columns = 1;
  int plane = 1;  // its elements
  Access access;
  int halves_h = 1;
  int tiles = 1;     // of a plane
  int channels = 1;  // of a unit
  int groups = 1;    // of channels
  int images = 1;    // of a unit
  int image_blocks = 1;
  int bands = 1;
  int lanes = 1;  // of a unit
  // A unit's planes come in runs, in shared memory run_step bytes apart.
  int run_planes = 1;
  int runs = 1;  // of one tensor
  int run_step = 0;
  // Shared memory, in bytes: stages of the source and perhaps the output gradient; then the sums of
  // a weight gradient; barriers last. Results take the place of their source.
  int stages_at = 0;
  int grad_at = 0;  // in a stage
  int stage_bytes = 0;
  int sums_at = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  // Results of a tile along an axis that is cut in `halves`, of which this is one.
  static constexpr int share(int side, int halves, int half) {
    return half == 0 ? ceil_div(side, halves) : side / halves;
  }
  // Rows of the source that the tiles of a plane read, at most.
  constexpr int source_rows(int pad) const {
    return std::min(rows, share(rows, halves_h, 0) + (halves_h == 1 ? 0 : pad));
  }
};

// The side of a tile with which the problem's planes are `exact`; 0 where there is none.
constexpr int exact_tile(const Problem& problem) {
  if (problem.h.input != problem.w.input) return 0;
  for (const int tile : kTiles)
    if (problem.w.input == tile || problem.w.input == 2 * tile) return tile;
  return 0;
}

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::plane
