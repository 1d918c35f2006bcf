// What the kernels of the plane family share: where the planes of a unit lie, a lane's tile, and a
// row of it.
#pragma once

#include "../families/plane.h"
#include "pipeline.cuh"
#include "scalar.cuh"

namespace dwconv::plane {

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor unit_channels, run_planes, tiles;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan)
      : UnitGrid(geometry, problem, plan),
        unit_channels(g.channels),
        run_planes(g.run_planes),
        tiles(g.tiles) {}

  // A run of a unit's planes, for a stage of shared memory.
  template <typename Type>
  __device__ Run<Type> run(Type* tensor, const Unit& unit, int index, char* stage) const {
    int image = index * g.run_planes;
    const int channel = unit_channels.remainder(image);
    const int images_here = images_of(unit), channels_here = channels_of(unit);
    const bool there = image < images_here && channel < channels_here;
    const int planes = g.runs == 1 ? channels_here * images_here : min(g.run_planes, channels_here);
    return {tensor + (first_plane(unit) + static_cast<std::int64_t>(image) * channels + channel) *
                         g.plane,
            stage + index * g.run_step, there ? planes * g.plane : 0};
  }
};

// The tile of a lane, the same in every unit. It holds little, for its registers are needed.
template <typename A>
struct Lane {
  int plane;     // of the unit
  int first;     // its corner in a stage, but for what comes along before a run
  int row_step;  // from there inwards
  int column_step;

  // Elements of `bytes`.
  __device__ Lane(const Grid& grid, int index, int bytes) {
    const Geometry& g = grid.g;
    const int width = A::exact ? A::tile * A::halves : g.columns;
    plane = index;
    const int tile = grid.tiles.remainder(plane);
    row_step = tile / A::halves == 0 ? width : -width;
    column_step = A::halves == 1 || tile % 2 == 0 ? 1 : -1;
    int run = plane;
    const int in_run = grid.run_planes.remainder(run);
    first = run * (g.run_step / bytes) + in_run * g.plane + (far_h() ? (g.rows - 1) * width : 0) +
            (far_w() ? width - 1 : 0);
  }

  // Whether it begins at the last row or column of the plane.
  __device__ bool far_h() const { return row_step < 0; }
  __device__ bool far_w() const { return A::halves == 2 && column_step < 0; }
  // Results that are its own: of a half that may be less than a tile.
  __device__ int rows(const Geometry& g) const {
    return Geometry::share(g.rows, g.halves_h, far_h() ? 1 : 0);
  }
  __device__ int columns(const Geometry& g) const {
    return Geometry::share(g.columns, A::halves, far_w() ? 1 : 0);
  }
  // Of a row of the tile.
  __device__ int at(int column) const { return A::halves == 1 ? column : column * column_step; }

  __device__ int channel(const Grid& grid) const {
    int image = plane;
    return grid.unit_channels.remainder(image);
  }
  __device__ bool in(const Grid& grid, const Unit& unit) const {
    int image = plane;
    const int channel = grid.unit_channels.remainder(image);
    return image < grid.images_of(unit) && channel < grid.channels_of(unit);
  }
  // Its corner among the elements of a stage with the runs of `tensor`. Of an offset within 16
  // bytes 32 bits are enough.
  template <typename Type>
  __device__ int corner(const Type* tensor, const Grid& grid, const Unit& unit) const {
    constexpr unsigned per_vector = 16 / sizeof(Type);
    const int image = grid.g.runs == 1 ? 0 : grid.unit_channels.quotient(plane);
    const auto run = static_cast<unsigned>(grid.first_plane(unit)) +
                     static_cast<unsigned>(image) * grid.channels;
    return first + static_cast<int>((misalignment(tensor) + run * grid.g.plane) % per_vector);
  }
};

// What a tile reads of a row of the source; zeros beyond the image. A plane that is cut has more
// columns than a tile.
template <typename S, typename A, int count>
__device__ inline void load_row(float (&row)[count], const typename S::Type* from,
                                const Lane<A>& lane, int columns) {
#pragma unroll
  for (int c = 0; c < count; ++c) {
    const bool there = A::exact || (A::halves == 2 && c <= A::tile) || c < columns;
    row[c] = there ? S::widen(from[lane.at(c)]) : 0.f;
  }
}

// From a geometry to one of the kernels: `Kernels` names them, template <int kernel, typename A>
// static auto of().
template <typename Kernels, int kernel>
auto choose_access(const Access& a) {
  decltype(Kernels::template of<kernel, Fixed<kTiles[0], 1, false>>()) found = nullptr;
  const auto consider = [&]<int tile, int halves, bool exact>() {
    if (a.tile == tile && a.halves == halves && a.exact == exact)
      found = Kernels::template of<kernel, Fixed<tile, halves, exact>>();
  };
  const auto consider_tile = [&]<int tile>() {
    consider.template operator()<tile, 1, false>();
    consider.template operator()<tile, 1, true>();
    consider.template operator()<tile, 2, false>();
    consider.template operator()<tile, 2, true>();
  };
  consider_tile.template operator()<kTiles[0]>();
  consider_tile.template operator()<kTiles[1]>();
  return found;
}
template <typename Kernels>
auto choose(const Geometry& g, const Problem& problem) {
  switch (problem.w.kernel) {
    case kKernels[0]:
      return choose_access<Kernels, kKernels[0]>(g.access);
    case kKernels[1]:
      return choose_access<Kernels, kKernels[1]>(g.access);
    default:
      return choose_access<Kernels, kKernels[2]>(g.access);
  }
}

}  // namespace dwconv::plane
