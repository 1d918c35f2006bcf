// What kernels of families have in common whose units are some channels of 16 images.
#pragma once

#include "launch.h"
#include "pipeline.cuh"

namespace dwconv {

// The planes of a unit's channels of one image, `plane` elements each, and where they are to be in
// shared memory.
template <typename Geometry, typename Type>
__device__ inline Run<Type> run_of_image(const UnitGrid<Geometry>& grid, Type* tensor,
                                         const Unit& unit, int image, int plane, char* to) {
  const bool there = image < grid.images_of(unit);
  const std::int64_t first =
      grid.first_plane(unit) + static_cast<std::int64_t>(image) * grid.channels;
  return {tensor + first * plane, to, there ? grid.channels_of(unit) * plane : 0};
}

// Whether images and results begin at a multiple of so many bytes.
inline bool begin_with(int bytes, const Tensors& tensors) {
  const auto bits = reinterpret_cast<std::uintptr_t>(tensors.input) |
                    reinterpret_cast<std::uintptr_t>(tensors.output);
  return bits % bytes == 0;
}

}  // namespace dwconv
