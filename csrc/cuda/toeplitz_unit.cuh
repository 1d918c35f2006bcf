// What the kernels of the Toeplitz family share: units, positions, and the threads that share runs
// of memory.
#pragma once

#include <utility>

#include "../families/toeplitz.h"
#include "divide.cuh"
#include "memory.cuh"
#include "units.cuh"

namespace dwconv::toeplitz {

// Sixteen at a time, a warp takes a channel's positions: see families/toeplitz.h.
struct Position {
  int image;
  int row;  // of its first result, in the unit
  int strip;
};

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid {
  Geometry g;
  std::int64_t channels;
  int batch;
  SmallDivisor strips, walks, dilation_w;

  Grid(const Geometry& geometry, const Problem& problem)
      : g(geometry),
        channels(problem.channels),
        batch(static_cast<int>(problem.batch)),
        strips(g.strips),
        walks(g.walks),
        dilation_w(g.w.dilation) {}

  // The last group may have fewer planes, the last block fewer images, the last band fewer rows.
  __device__ int planes(const Unit& unit) const {
    const std::int64_t left = channels - static_cast<std::int64_t>(unit.group) * g.planes;
    return left < g.planes ? static_cast<int>(left) : g.planes;
  }
  __device__ int images(const Unit& unit) const {
    return min(g.images, batch - unit.image * g.images);
  }
  __device__ int rows(const Unit& unit) const {
    return min(g.rows, g.h.result - unit.band * g.rows);
  }
  __device__ std::int64_t first_plane(const Unit& unit) const {
    return static_cast<std::int64_t>(unit.image) * g.images * channels +
           static_cast<std::int64_t>(unit.group) * g.planes;
  }
  __device__ Position position(int index) const {
    const int strip = strips.remainder(index);
    const int walk = walks.remainder(index);
    return {index, walk * g.walk_rows, strip};
  }
};

// How the threads of a block share runs of memory, one for each image: a warp takes every
// kWarps'th, or all threads take each where there are fewer runs than warps.
struct Share {
  int rank, size;   // of a thread, among those that take a run
  int first, step;  // the runs it takes part in

  static int size_for(int images) { return images >= kWarps ? 32 : kThreads; }
  __device__ explicit Share(int images) {
    const int thread = threadIdx.x;
    const bool apart = images >= kWarps;
    rank = apart ? thread % 32 : thread;
    size = apart ? 32 : kThreads;
    first = apart ? thread / 32 : 0;
    step = apart ? kWarps : 1;
  }
};

// The threads of a share copy elements `first` to `first + count - 1` from shared to global memory,
// both counted from a multiple of 16 bytes: wide stores but for the ends.
template <typename Type>
__device__ inline void store_share(Type* global, const Type* shared, int first, int count,
                                   const Share& share) {
  const int last = first + count;
  const int begin = first > 0, end = last / kVector;  // whole vectors; `first` is less than one
  auto* to = reinterpret_cast<uint4*>(global);
  const auto* from = reinterpret_cast<const uint4*>(shared);
  for (int i = begin + share.rank; i < end; i += share.size)
    to[i] = from[i];
  // Eight lanes each for what lies before and behind.
  const bool before = share.rank < kVector;
  const int i = before ? share.rank : max(begin, end) * kVector + share.rank - kVector;
  if (before ? begin == 1 && i >= first && i < last : share.rank < 2 * kVector && i < last)
    global[i] = shared[i];
}

// Calls row(integral_constant<0>) to row(<count - 1>) until one returns false, which it returns.
template <int count, typename Row>
__device__ inline bool unroll(Row&& row) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return (row(std::integral_constant<int, i>{}) && ...);
  }(std::make_integer_sequence<int, count>{});
}

}  // namespace dwconv::toeplitz
