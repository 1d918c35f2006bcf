// The Toeplitz family: 16-bit tensors on the tensor cores, which multiply 16 positions x 16 columns
// of the image by 16 x 8: the Toeplitz matrix of one filter row. Shared by its planner and its
// kernels.
//
// A strip is 8 neighbouring results of a row; it reads a window of 16 columns at most. A walk is a
// run of rows that a warp goes down one by one. A position is one strip of one walk of one image: a
// warp takes 16 of a channel at a time.
#pragma once

#include "partials.h"
#include "stage.h"

namespace dwconv::toeplitz {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;

inline constexpr int kPositions = 16;
inline constexpr int kColumns = 8;
inline constexpr int kWindow = 16;
inline constexpr int kVector = 8;      // elements in 16 bytes
inline constexpr int kZeroBytes = 32;  // at the start of shared memory: what idle positions read

// What a filter may span, dilation included: in width the window holds it, in height registers do.
inline constexpr int kMaxReachW = kWindow - kColumns + 1;
inline constexpr int kMaxReachH = 11;

// Rows whose pieces would be narrower than this come in as whole runs, and are laid out from there.
// Copies from global memory take 4 bytes at least.
inline constexpr int kNarrowestChunk = 2;

// Pieces that go straight to their places: a lane moves this many before it looks at the next; they
// lie 32 apart. Pieces of a whole run are 8 columns, or two accesses, wide.
inline constexpr int kLanePieces = 4;
inline constexpr int kBlockPieces = 32 * kLanePieces;
inline constexpr int kRunAlign = 4;
inline constexpr int kRunPiece = 2 * kRunAlign;

// Filter rows of a weight gradient that a warp sums at a time, and the pitch of the 16 x 8 products
// of one: 9 keeps the diagonals in different banks.
inline constexpr int kSumRows = 3;
inline constexpr int kSumPitch = kColumns + 1;

// Blocks of a multiprocessor that a kernel's registers allow: 4 sums for each filter row, and 2
// registers of the filter or of the output gradient.
constexpr int resident_blocks(int reach_h) {
  return reach_h <= 4 ? 6 : reach_h <= 6 ? 5 : reach_h <= 10 ? 4 : 3;
}

// How a tensor's share of a unit gets into shared memory. Pieces, of `stage.chunk` elements or of
// kRunPiece, follow each other through an image's rows and planes; a table says where each goes.
struct Feed {
  Stage stage;
  int image = 0;  // from one image of the unit to the next
  int raw = 0;    // elements of an image that comes in as a whole run; 0: pieces go to their places
  int pieces = 0;  // of a plane
  int row_pieces = 0;
  std::int64_t plane_elements = 0;  // in global memory
  std::int64_t image_elements = 0;  // of all channels
  int at = 0;                       // bytes of shared memory before the tiles and runs
  int table_at = 0;
};

// Everything that follows from a problem and its tiling. A unit is some channels of some images, or
// a band of rows of one channel.
struct Geometry {
  Window h, w;
  int reach_h = 1, reach_w = 1;  // of a filter
  int planes = 1;                // of an image of a unit
  int groups = 1;                // of planes
  int images = 1;                // of a unit
  int image_blocks = 1;
  int rows = 1;  // results of a unit along h
  int bands = 1;
  int strips = 1;
  int walks = 1;      // of a band
  int walk_rows = 1;  // of a walk; at least reach_h
  int batches = 1;    // of kPositions, of a channel of a unit
  int shift = 0;      // columns of a window before the first that its strip reads
  Feed source;
  Feed grad;        // backward_weight: the output gradient
  int result = 0;   // elements of an image's results in shared memory; backward_weight: 0
  int rest_at = 0;  // bytes of shared memory before results or sums
  int shared_bytes = 0;
  std::int64_t units = 0;
};

Geometry geometry(const Problem& problem, const Tiling& tiling);

// Of a weight gradient.
constexpr Partials partials_of(const Problem& problem, const Geometry& g, std::int64_t blocks) {
  return with_segments({.units = g.units,
                        .units_per_group = static_cast<std::int64_t>(g.image_blocks) * g.bands,
                        .blocks = blocks,
                        .channels = problem.channels,
                        .planes = g.planes,
                        .taps = static_cast<int>(problem.taps())});
}

}  // namespace dwconv::toeplitz
