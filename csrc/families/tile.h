// The tile family: register tiles of results on the FMA units, fed from runs of whole planes or of
// rows in shared memory. Shared by its planner and its kernels.
#pragma once

#include <iterator>

#include "unit.h"

namespace dwconv::tile {

inline constexpr int kMaxThreads = 256;
inline constexpr int kMaxKernel = 11;

// With dilation, only `dilated` knows that taps lie apart.
enum class Mode : std::uint8_t { dense, strided, dilated };

// How a thread reads a row. unit 1: element by element, whatever the alignment; its tile is one
// column, or several `dilation` apart, which share what they read. unit 2 or 4: its tile is 4
// columns, which with what lies `pad` before and kernel_w - 1 - pad after come in aligned pieces of
// `unit` elements: a quarter of the instructions, where the row length and the padding allow it.
struct Access {
  Mode mode = Mode::dense;
  int unit = 1;
  int pad = 0;
  int columns = 1;

  constexpr int stride() const { return mode == Mode::strided ? 2 : 1; }
  constexpr bool operator==(const Access&) const = default;
};

// An access as a type: what kernels are compiled for.
template <Mode mode_, int unit_, int pad_, int columns_>
struct Fixed {
  static constexpr Access value{mode_, unit_, pad_, columns_};
  static constexpr Mode mode = mode_;
  static constexpr int unit = unit_;
  static constexpr int pad = pad_;
  static constexpr int columns = columns_;
  static constexpr int stride = value.stride();
};
template <Mode mode>
using OneColumn = Fixed<mode, 1, 0, 1>;

// The width of tiles of several columns read element by element. Odd, so that neighbouring threads
// find their elements in different banks. Filters have them that are wide enough to share
// something; in 16 bits, those that the toeplitz family may find too wide with their dilation: N20
// C199 85x22 k10 dilation 3 took 161 us with one column, and takes 95.
inline constexpr int kSharingColumns = 5;
constexpr bool has_sharing_columns(DType dtype, Mode mode, int kernel_w) {
  return dtype == DType::float32 ? kernel_w >= 3 : mode == Mode::dilated && kernel_w >= 6;
}
// One column is hardly ever best beside them, but for strides: of 2,800 random problems without one
// the choice for 60 was such a tile. Those kernels were 78 of 1,564.
constexpr bool has_one_column(DType dtype, Mode mode, int kernel_w) {
  return mode == Mode::strided || !has_sharing_columns(dtype, mode, kernel_w);
}
template <Mode mode>
using SharingColumns = Fixed<mode, 1, 0, kSharingColumns>;
inline constexpr int kWideColumns = 4;

// With a dilation, columns that share what they read are few: of 33 with dilation 6 there are 5 or
// 6. Filters 3 wide, which large dilations have, have tiles for that.
inline constexpr int kFewColumns = 3;
constexpr bool has_few_columns(Mode mode, int kernel_w) {
  return mode == Mode::dilated && kernel_w == 3;
}
template <Mode mode>
using FewColumns = Fixed<mode, 1, 0, kFewColumns>;

// Whether a tile skips the products of image rows that are not there. With the branch, 7x7 float32
// read in units of 4 would spill 68 bytes.
constexpr bool skips_rows(const Access& access) { return access.unit == 1; }
// And whether it does not even load them: many may be outside. Others read zeros instead: without a
// branch, loads of the rows to come are under way while others are used.
constexpr bool skips_loads(const Access& access) {
  return access.columns == 1 || access.mode == Mode::dilated;
}

// Zeros in shared memory, as many as a tile reads of a row.
inline constexpr int kZeroBytes = 96;

// The widths and paddings for which kernels with units of 2 and 4 are compiled: same, valid and
// full. In 16 bits the toeplitz family takes those up to 9.
struct WideFilter {
  int kernel_w;
  int pad;
};
inline constexpr WideFilter kWideFilters[] = {{11, 5}, {1, 0}, {3, 1}, {3, 0}, {3, 2}, {5, 2},
                                              {5, 0},  {5, 4}, {7, 3}, {7, 0}, {7, 6}, {9, 4}};
constexpr int wide_filters(DType dtype) {
  return dtype == DType::float32 ? static_cast<int>(std::size(kWideFilters)) : 5;
}

// A thread's tile is so many rows high. Tall tiles read fewer rows twice, low ones waste less at
// the lower edge. The image sizes of most networks are multiples of 7. Tiles of one column of
// narrow filters may be tall.
inline constexpr int kTileRows = 7;
inline constexpr int kTallRows = 14;
constexpr bool has_tall_tiles(Mode mode, int kernel_w) {
  return mode == Mode::dense && kernel_w <= 3;
}
inline constexpr int kWideRows = 7;
inline constexpr int kSharingRows[3] = {7, 7, 5};
inline constexpr int kFewRows = 6;
inline constexpr int kSumRows[3] = {7, 7, 5};  // of a weight gradient, for one column
constexpr int rows_of(const Access& access, int of_one_column) {
  if (access.columns == kFewColumns) return kFewRows;
  if (access.columns == kSharingColumns) return kSharingRows[static_cast<int>(access.mode)];
  return access.unit > 1 ? kWideRows : of_one_column;
}
constexpr int sum_rows_of(const Access& access) {
  return rows_of(access, kSumRows[static_cast<int>(access.mode)]);
}

// Filter rows that a thread keeps at a time; what is left of a filter goes row by row.
inline constexpr int kFilterRows[kMaxKernel + 1] = {0, 4, 2, 3, 4, 5, 3, 7, 2, 3, 2, 3};
// With five columns. Of widths 10 and 11, 4 would spill: N198 C151 52x10 k10 float32 took 153 us,
// and takes 143.
inline constexpr int kSharingFilterRows[kMaxKernel + 1] = {0, 0, 0, 3, 4, 5, 3, 4, 4, 3, 3, 3};
constexpr int filter_rows_of(const Access& access, int kernel_w) {
  return (access.columns == kSharingColumns ? kSharingFilterRows : kFilterRows)[kernel_w];
}

// Whether weight gradients of filters of one or two rows have kernels of their own. In 16 bits
// other families are faster for most of those, and for strides tiles of several columns: these
// kernels were the choice for 2,980 of 1,440,000 random problems, and a sixth of their kind.
constexpr bool has_single_rows(const Access& access, DType dtype, int kernel_w) {
  if (access.unit > 1) return kernel_w == 11;  // others are for square filters
  if (dtype != DType::float32) return false;
  return access.mode != Mode::strided || access.columns > 1 || kernel_w < 3;
}

// Of a weight gradient: its sums stay in registers, so a thread has this many filter rows, and
// others of its block the rest.
constexpr int sum_filter_rows(const Access& access, DType dtype, int kernel_h, int kernel_w) {
  if (kernel_h == kernel_w && (kernel_h <= 5 || kernel_h == 7)) return kernel_h;
  return kernel_h >= 3 || !has_single_rows(access, dtype, kernel_w) ? 3 : 1;
}

// Blocks of kMaxThreads on a multiprocessor that a kernel's registers allow: of 65,536, a thread
// may take 64, 80 or 128.
constexpr int resident_blocks(const Access& access, int tile_rows, int filter_rows, int kernel_w) {
  if (access.columns == kSharingColumns) return access.mode == Mode::dense && kernel_w == 3 ? 3 : 2;
  const int row = access.unit == 1 ? 3 * kernel_w : kernel_w + 6;
  const int registers = tile_rows * access.columns + filter_rows * kernel_w + row;
  return registers <= 26 ? 4 : registers <= 50 ? 3 : 2;
}

// Whether a convolution's blocks may have a warp that computes nothing: see cuda/walk.cuh. Those of
// many multiply-adds have better uses for it: N128 C192 28x28 k7 float32 took 78 us with it, and 72
// without; k7 dilation 3 101 and 92. And to have the choice costs registers and instructions where
// it is not there: 10 % for N16 C2048 33x33 k3 dilation 6 float32, as much for N48 C96 40x8 k3.
constexpr bool may_be_served(const Access& a, int kernel_w, DType dtype) {
  if (a.unit > 1) return kernel_w == 11 || (kernel_w <= 5 && dtype != DType::float32);
  return a.mode == Mode::strided && (a.columns == 1 || kernel_w <= 5);
}

// Sums of a weight gradient that are reduced at a time.
inline constexpr int kSumBatch = 16;

// Tiles of the input gradient with stride 2, in steps of the output gradient: each step is two
// results along an axis.
inline constexpr int kStepRows = 4;
// Of larger square filters not all rows fit the registers.
inline constexpr int kMaxSquare = 7;
inline constexpr int kStepBlocks = 3;

// Everything that follows from a problem and its tiling.
struct Geometry {
  // Of the input gradient with stride 2: results are steps, kernels are halved.
  Window h, w;
  Access access;
  int tile_rows = 0;
  int filter_rows = 0;
  int channels = 1;  // of a unit, as many as it has filters
  int groups = 1;    // of channels
  int images = 1;    // of a unit; several only of all channels and rows
  int image_blocks = 1;
  int planes = 1;  // of a unit: `channels` of each image
  int rows = 1;    // results of a band, along h
  int bands = 1;
  int row_classes = 1;     // rows modulo the dilation
  int row_tiles = 1;       // of a band, for each class of rows
  int column_classes = 1;  // columns modulo the dilation, where a tile has several
  int strips = 1;          // tiles side by side
  int level_items = 1;     // tiles of a plane on a level: all but those above and below
  int plane_items = 1;     // tiles of a plane
  int items = 1;           // of a unit
  int roles = 1;           // backward_weight: groups of threads, each with its filter rows
  int round = 1;           // items that the threads of a role take at a time; 0: they cannot
  int round_planes = 1;    // planes that a round is of
  bool by_level = false;   // a level of all planes of a round after the other, not all of a plane
  // Shared memory, in bytes: stages of a source run and perhaps a run of the output gradient, then
  // filters and results, or sums; barriers, and zeros that stand for a row outside the image.
  int stages_at = 0;
  int grad_at = 0;  // in a stage
  int stage_bytes = 0;
  int rest_at = 0;
  int filter_bytes = 0;  // of a stage
  int results_at = 0;
  int result_bytes = 0;  // from one place for results to the other; 0 where there is one
  int barriers_at = 0;
  int zeros_at = 0;
  int shared_bytes = 0;
  std::int64_t units = 0;

  constexpr bool whole() const { return bands == 1; }
};

// Whether the problem is computed by phases, all pairs of filter rows at once.
constexpr bool has_square_phases(const Problem& problem) {
  return by_phases(problem) && problem.h.kernel == problem.w.kernel &&
         problem.w.kernel <= kMaxSquare;
}

constexpr bool may_be_served(const Problem& problem, const Arch& arch, const Geometry& g) {
  if (problem.pass == Pass::backward_weight || !is_sm_90(arch)) return false;
  return by_phases(problem) ? has_square_phases(problem)
                            : may_be_served(g.access, g.w.kernel, problem.dtype);
}

Geometry geometry(const Problem& problem, const Tiling& tiling);

// Of the products of a tile's rows with those of the filter, the share whose row of the image is
// there. Counted for the first class of rows.
double share_inside(const Geometry& g);

}  // namespace dwconv::tile
