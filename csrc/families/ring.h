// The ring family: channels_last, on the FMA units. Rows of some channels come into a ring in
// shared memory, each of them once; a thread keeps the sums of its columns for as many rows of
// results as the filter is high, and passes over each row as it comes. Shared by its planner and
// its kernels.
#pragma once

#include <iterator>

#include "channel_groups.h"
#include "unit.h"

namespace dwconv::ring {

// The filters that kernels are compiled for, in both directions and with strides 1 and 2.
struct Filter {
  int h, w;
  constexpr bool operator==(const Filter&) const = default;
};
inline constexpr Filter kFilters[] = {{3, 3}, {5, 5}, {7, 7}, {1, 11}};

inline constexpr int kMaxThreads = 256;
// Threads side by side on the channels of a pixel, at most: what a pixel takes in shared memory is
// made for so many. Twice as many, where there are kernels for it, read 256 bytes of a pixel at a
// time, not 128: N64 C128 256x512 k3 float32 took 3,306 us forward, and 3,208 with them, and its
// weight gradient 2,993 and 2,843.
inline constexpr int kLanes = 32;
constexpr bool has_many_lanes(const Filter& filter) { return filter == Filter{3, 3}; }
inline constexpr int kCopyBytes = 16;
// A box that the copy engine brings has at most so many columns, and begins at a multiple of so
// many bytes.
inline constexpr int kMostPixels = 256;
inline constexpr int kMostStep = 8;  // from one column of a box to the next
inline constexpr int kBoxAlignment = 128;
// Rows in the ring, a power of two, and how many rows after its use a row's place is filled anew.
constexpr int stages_of(Pass pass, const Filter& filter) {
  return filter.h <= 3 || pass == Pass::backward_weight ? 4 : 8;
}
constexpr int lag_of(int stages) { return stages > 4 ? 2 : 1; }
// Barriers of the ring: of each row, that it has come and that it has been read. Stages follow.
constexpr int control_bytes(int stages, int alignment = kBoxAlignment) {
  return round_up(2 * 8 * stages, alignment);
}

// What a thread computes of a row: results of so many columns and neighbouring channels.
struct Shape {
  int columns, channels;
};
constexpr Shape shape_of(Pass pass, DType dtype, const Filter& filter, int stride) {
  const bool weight = pass == Pass::backward_weight;
  const bool pair = dtype != DType::float32 && filter.h <= (weight ? 3 : 5);
  if (pass == Pass::backward_input && stride == 2)  // steps, of two results along an axis
    return {filter.h == 7 ? 3 : 4, pair && filter.h == 3 ? 2 : 1};
  if (filter.h == 5 && pair) return {4, 2};
  return {stride == 1 ? 7 : 4, pair ? 2 : 1};
}

// Blocks of kMaxThreads on a multiprocessor that a kernel's registers allow.
constexpr int resident_blocks(Pass pass, const Filter& filter, const Shape& shape, int stride) {
  const bool phases = pass == Pass::backward_input && stride == 2;
  const int sums = (phases ? 2 * (filter.h + 1) : filter.h) * shape.columns;
  const int rows = sums + filter.h * filter.w + shape.columns + filter.w;
  const int registers = rows * shape.channels;
  const int most = pass == Pass::backward_weight ? 3 : 4;
  return registers <= 44 ? most : registers <= 60 ? 3 : 2;
}

// Everything that follows from a problem and its tiling. With a dilation, the rows of results whose
// number is the same modulo the dilation read rows of their own, and so do columns: each class of
// them is an image by itself, without a dilation.
struct Geometry {
  Window h, w;
  int row_classes = 1;
  int column_classes = 1;
  Shape shape{1, 1};
  int width = 1;       // channels of a block
  int groups = 1;      // of channels
  int vectors = 1;     // threads side by side, on those channels
  int lanes = kLanes;  // that there is room for
  int images = 1;      // of a unit
  int image_blocks = 1;
  int strips = 1;  // threads' columns side by side in a tile
  int column_tiles = 1;
  int band = 1;  // rows of results of a unit
  int bands = 1;
  int first_step = 0;   // the first row that a unit passes over: those before it are not there
  int steps = 1;        // and how many, whether they are there or not
  int pixels = 1;       // columns of the source that a tile reads
  int grad_pixels = 0;  // backward_weight: and of the output gradient
  int pixel_bytes = 1;  // in shared memory
  int grad_at = 0;      // in a stage
  int stage_bytes = 0;
  int place_bytes = 0;  // for a row of results on its way out, where they are collected
  int shared_bytes = 0;
  std::int64_t units = 0;  // of a group of channels
  int warps = 0;           // of a block, where it is not that each thread has a strip of a vector

  constexpr int threads() const {
    return warps > 0 ? warps * 32 : round_up(images * strips * vectors, 32);
  }
};

struct Tiles {
  int width, images, strips, band;
};
constexpr Tiles tiles_of(const Plan& plan) {
  const Tiling& t = plan.tiling;
  return {t.planes, t.images, t.columns, t.rows};
}
Geometry geometry(const Problem& problem, const Tiles& tiles);
// Of that what is not bytes of shared memory, with threads or lanes of any shape.
Geometry units_of(const Problem& problem, const Tiles& tiles, const Shape& shape);

// Sums of a weight gradient that are added over a block's threads at a time.
inline constexpr int kSumBatch = 8;

}  // namespace dwconv::ring
