// The tile family: register tiles of results on the FMA units, fed from runs of whole planes or of
// rows in shared memory. Shared by its planner and its kernels.
#pragma once

#include "partials.h"
#include "stage.h"

namespace dwconv::tile {

inline constexpr int kMaxThreads = 256;
inline constexpr int kMaxKernel = 11;

// What a kernel is compiled for beside the filter's width and the rows of a tile. With dilation,
// only `dilated` knows that taps lie apart.
enum class Mode : std::uint8_t { dense, strided, dilated };

// A thread's tile is one column of so many rows: neighbouring threads read neighbouring elements,
// whatever the alignment. Tall tiles read fewer rows twice, low ones waste less at the lower edge.
// The image sizes of most networks are multiples of 7.
inline constexpr int kTileRows[3][2] = {{7, 14}, {7, 7}, {7, 5}};  // by mode
inline constexpr int kSumRows[3] = {7, 7, 5};                      // of a weight gradient

// Filter rows that a thread keeps at a time; what is left of a filter goes row by row.
inline constexpr int kFilterRows[kMaxKernel + 1] = {0, 4, 3, 3, 3, 5, 3, 7, 2, 3, 2, 3};

// Of a weight gradient: its sums stay in registers, so a thread has this many filter rows, and
// others of its block the rest.
constexpr int sum_filter_rows(int kernel_h, int kernel_w) {
  if (kernel_h == kernel_w && (kernel_h == 5 || kernel_h == 7)) return kernel_h;
  return kernel_h >= 3 ? 3 : 1;
}

// Blocks of kMaxThreads on a multiprocessor that a kernel's registers allow: of 65,536, a thread
// may take 64, 80 or 128.
constexpr int resident_blocks(int tile_rows, int filter_rows, int kernel_w) {
  const int registers = tile_rows + (filter_rows + 3) * kernel_w;
  return registers <= 26 ? 4 : registers <= 50 ? 3 : 2;
}

// Sums of a weight gradient that are reduced at a time.
inline constexpr int kSumBatch = 16;

// Tiles of the input gradient with stride 2, in steps of the output gradient: each step is two
// results along an axis.
inline constexpr int kStepRows = 4;
inline constexpr int kStepBlocks = 3;

// Everything that follows from a problem and its tiling.
struct Geometry {
  // Of the input gradient with stride 2: results are steps, kernels are halved.
  Window h, w;
  Mode mode = Mode::dense;
  int tile_rows = 0;
  int filter_rows = 0;
  int planes = 1;  // of a unit
  int groups = 1;  // of planes
  int rows = 1;    // results of a band, along h
  int bands = 1;
  int row_tiles = 1;  // of a band, for each class of rows (modulo the dilation)
  int items = 1;      // tiles of a unit
  int roles = 1;      // backward_weight: groups of threads, each with its filter rows
  // Shared memory, in bytes: stages of a source run and perhaps a run of the output gradient, then
  // filters and results, or sums; barriers last.
  int grad_at = 0;  // in a stage
  int stage_bytes = 0;
  int rest_at = 0;
  int results_at = 0;
  int barriers_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr bool whole() const { return bands == 1; }
};

// Whether the problem is an input gradient that is computed by phases.
constexpr bool by_phases(const Problem& problem) {
  return problem.pass == Pass::backward_input && problem.h.stride == 2;
}

Geometry geometry(const Problem& problem, const Tiling& tiling);

constexpr Partials partials_of(const Problem& problem, const Geometry& g, std::int64_t blocks) {
  return with_segments({.units = g.units,
                        .units_per_group = problem.batch * g.bands,
                        .blocks = blocks,
                        .channels = problem.channels,
                        .planes = g.planes,
                        .taps = static_cast<int>(problem.taps())});
}

}  // namespace dwconv::tile
