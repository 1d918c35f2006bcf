// The direct family: large filters in any dtype by multiply-adds in float32. Shared by its planner
// and its kernels.
//
// Forward pass and input gradient: a thread computes 8 neighbouring columns of some neighbouring
// rows of results. Such a position is of one image; those of a warp are of one channel, so that a
// tap is one element for all of its lanes. A row of the image meets every row of a position's
// results, each with another row of the filter.
#pragma once

#include "unit.h"

namespace dwconv::direct {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kResident = 2;  // blocks of a multiprocessor, for which registers are kept
inline constexpr int kColumns = 8;   // of results, of a thread; and taps that it takes at a time
inline constexpr int kQuad = 4;      // floats that are read from shared memory at a time
inline constexpr int kQuadBytes = 16;

// Rows of results of a thread: the kernels that there are. With fewer there is more to load for
// each product, and there are more threads for an image.
inline constexpr int kTileRows[] = {4, 2, 1};

// Products that a thread adds up before the sum goes to another: its rounding error grows with the
// root of their number. 961 in a row are off by 6e-7 of the result, and the promise is 1e-6.
inline constexpr int kMostProducts = 512;

// Everything that follows from a problem and its tiling. A unit is some rows and columns of
// results, of one channel of some images; a block has one.
struct Geometry {
  Window h, w;  // of the taps that meet the image
  int first_tap_row = 0;
  int first_tap = 0;
  int tile_rows = 4;  // of results, of a thread
  int images = 1;     // of a unit
  int image_blocks = 1;
  int rows = 1;  // of results, of a unit
  int segments = 1;
  int width = 1;  // columns of results, of a unit
  int parts = 1;
  int tiles = 1;        // of 8 columns, of a unit
  int groups = 1;       // of rows of results that are a thread's, of a unit
  int chunks = 1;       // of 8 taps, the last may have fewer
  int source_rows = 1;  // of a unit's image, at most
  // Shared memory. A row of the image is cut into quads of floats. Those with an even number lie
  // together, then the others: neighbouring threads, which begin two quads apart, then read
  // neighbouring quads, which are in different banks.
  int half = 1;  // quads of either sort
  int image_quads = 1;
  int tap_pitch = 1;  // floats of a row of the filter
  int filter_at = 0;  // in bytes, after a row of zeros
  int rows_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr int row_quads() const { return 2 * half; }
  constexpr int positions() const { return tiles * images * groups; }
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::direct
