// How rows of images come into shared memory for the direct family: as floats, padded with zeros to
// either side, so that no product has to know where an image ends.
#pragma once

#include "../families/direct.h"
#include "batches.cuh"
#include "divide.cuh"
#include "scalar.cuh"
#include "uniform.cuh"

namespace dwconv::direct {

// Four neighbouring elements as they lie in memory.
template <typename Type>
struct alignas(4 * sizeof(Type)) Quad {
  Type elements[kQuad];
};

// Whether rows of a tensor can be read or written four elements at a time.
template <typename Type>
bool has_quads(const Type* tensor, int columns) {
  return columns % kQuad == 0 && reinterpret_cast<std::uintptr_t>(tensor) % sizeof(Quad<Type>) == 0;
}

// Rows of some images, from the column `first` on, which may lie outside the image, to the one
// before `last`; after them are zeros.
template <typename Type>
struct Rows {
  const Type* from;
  std::int64_t image_step;
  int images, rows;
  int columns;
  int first, last;
  bool in_quads;
};

// All threads of the block bring rows, so many quads each, to `place(image, row, quad)`.
template <typename S, typename Place>
__device__ inline void stage_rows(const Rows<typename S::Type>& r, const SmallDivisor& quads,
                                  const Place& place) {
  using Type = typename S::Type;
  if (r.rows <= 0) return;
  const SmallDivisor rows(r.rows);
  const bool in_quads = r.in_quads && r.first % kQuad == 0;
  const auto load = [&](int index) {
    const int column = r.first + kQuad * quads.remainder(index);
    const int row = rows.remainder(index);
    const Type* at = r.from + index * r.image_step + row * r.columns + column;
    float4 quad{};
    if (in_quads) {
      if (static_cast<unsigned>(column) < static_cast<unsigned>(r.last)) {
        const auto four = *reinterpret_cast<const Quad<Type>*>(at);
        quad = {S::widen(four.elements[0]), S::widen(four.elements[1]), S::widen(four.elements[2]),
                S::widen(four.elements[3])};
      }
      return quad;
    }
    const auto element = [&](int i) {
      const bool inside = static_cast<unsigned>(column + i) < static_cast<unsigned>(r.last);
      return inside ? S::widen(at[i]) : 0.f;
    };
    quad = {element(0), element(1), element(2), element(3)};
    return quad;
  };
  in_batches<4>(r.images * r.rows * quads.value(), load, [&](int index, const float4& quad) {
    const int number = quads.remainder(index);
    const int row = rows.remainder(index);
    *place(index, row, number) = quad;
  });
}

}  // namespace dwconv::direct
