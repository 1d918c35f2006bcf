// The ring family: channels_last, on the FMA units. Rows of some channels come into a ring in
// shared memory, each of them once; a thread keeps the sums of its columns for as many rows of
// results as the filter is high, and passes over each row as it comes. Shared by its planner and
// its kernels.
#pragma once

#include <iterator>

#include "rows.h"

namespace dwconv::ring {

using rows::Filter;
using rows::Geometry;
using rows::Shape;
using rows::Tiles;

// The filters that kernels are compiled for, in both directions and with strides 1 and 2.
inline constexpr Filter kFilters[] = {{3, 3}, {5, 5}, {7, 7}, {1, 11}};

inline constexpr int kMaxThreads = 256;
// Threads side by side on the channels of a pixel, at most: what a pixel takes in shared memory is
// made for so many. Twice as many, where there are kernels for it, read 256 bytes of a pixel at a
// time, not 128: N64 C128 256x512 k3 float32 took 3,306 us forward, and 3,208 with them, and its
// weight gradient 2,993 and 2,843.
inline constexpr int kLanes = 32;
constexpr bool has_many_lanes(const Filter& filter) { return filter == Filter{3, 3}; }
// Rows in the ring, a power of two.
constexpr int stages_of(Pass pass, const Filter& filter) {
  return filter.h <= 3 || pass == Pass::backward_weight ? 4 : 8;
}
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

Geometry geometry(const Problem& problem, const Tiles& tiles);
// Sums of a weight gradient that are added over a block's threads at a time.
inline constexpr int kSumBatch = 8;

}  // namespace dwconv::ring
