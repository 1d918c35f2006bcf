// The batched family: float32 images so small, of a batch so large, that each lane of a warp has an
// image of its own. All lanes then multiply by the same tap at a time, and no product is with what
// lies outside an image. Shared by its planner and its kernels.
//
// A warp computes 4 rows and 7 or 8 columns of results of one channel. For each row of the image,
// and 4 columns of it, it reads the taps by which these and the results can be apart.
#pragma once

#include "unit.h"

namespace dwconv::batched {

inline constexpr int kLanes = 32;
inline constexpr int kMaxWarps = 16;  // of a block: 128 registers of a thread
inline constexpr int kRows = 4;       // of results, of a warp
inline constexpr int kColumns = 8;    // at most
inline constexpr int kQuad = 4;       // columns of the image that are read at a time
inline constexpr int kWindow = 12;    // taps by which they and the results are apart, and one more

// The kernels that there are, by images of a lane and columns of results. 7 columns waste nothing
// of images of 7 or 14.
inline constexpr int kLaneImages[] = {2, 1};
inline constexpr int kTileColumns[] = {8, 7};

// Everything that follows from a problem and its tiling. A unit is some channels of some images, of
// which a block has one.
struct Geometry {
  Window h, w;
  int source_plane = 1, result_plane = 1;  // elements
  int channels = 1;                        // of a unit
  int groups = 1;                          // of channels
  int images = kLanes;                     // of a unit
  int image_blocks = 1;
  int columns = kColumns;  // of results, of a tile
  int row_groups = 1;      // of results, one for a warp, as are the tiles
  int tiles = 1;
  int quads = 1;  // of a row of an image
  // Shared memory. First, in quads of floats: for each quad of a channel's image those of all
  // images, and one more, so that neighbouring quads of an image are in different banks. Results
  // take their place, for each image those of all channels; an odd number of floats, again for the
  // banks.
  int quad_pitch = 1;
  int result_pitch = 1;
  // Then the taps of each row of the filter, zeros where it has none: from that of the first quad
  // and the last tile to that of the last quad and the first tile. Tiles of 7 columns, whose taps
  // begin anywhere, have segments of their own.
  int taps_at = 0;  // in bytes
  int segments = 1;
  int segment = 1;  // floats
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr int tap_pitch() const { return segments * segment; }
  // Where the taps of a tile and the first quad begin, and how far element and result are apart
  // there.
  constexpr int taps_of(int tile) const {
    return segments > 1 ? tile * segment : (tiles - 1 - tile) * columns;
  }
  constexpr int first_tap(int number) const {
    return w.pad - (columns - 1) - (segments > 1 ? number : tiles - 1) * columns;
  }

  constexpr int warps() const { return channels * row_groups * tiles; }
  constexpr int lines() const { return channels * h.source; }  // rows of all channels' images
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

}  // namespace dwconv::batched
