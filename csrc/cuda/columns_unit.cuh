// What a block of the columns family does with a unit beside its products: where its planes lie,
// the taps as lanes read them, planes turned round.
#pragma once

#include "../families/columns.h"
#include "columns_turn.cuh"
#include "image_blocks.cuh"

namespace dwconv::columns {

// Geometry as kernels want it. A unit's image is a block of images.
struct Grid : UnitGrid<Geometry> {
  SmallDivisor unit_channels, parts, taps, copy_words, tiles, image_groups, column_groups;
  int filter_width;  // columns that meet nothing included
  bool mirrored;
  Rows source;
  bool even_result;  // rows begin at a multiple of two elements
  Use use;

  Grid(const Geometry& geometry, const Problem& problem, const Plan& plan, const Tensors& tensors)
      : UnitGrid(geometry, problem, plan),
        unit_channels(g.channels),
        parts(g.parts),
        taps(g.w.kernel),
        copy_words(g.copy_bytes / 4),
        tiles(g.tiles),
        image_groups(g.image_groups),
        column_groups(g.column_groups),
        filter_width(static_cast<int>(problem.w.kernel)),
        mirrored(problem.pass == Pass::backward_input),
        source(rows_of(tensors, g.w.source)),
        even_result(begin_with(4, tensors) && g.w.result % 2 == 0),
        use(use_of(plan)) {}

  // Of an image, what the unit's channels have of one tensor.
  template <typename Type>
  __device__ Run<Type> run(Type* tensor, const Unit& unit, int image, const RowRange& rows,
                           int height, int width, char* to) const {
    const std::int64_t plane = static_cast<std::int64_t>(height) * width;
    const std::int64_t first = first_plane(unit) + static_cast<std::int64_t>(image) * channels;
    const int count = static_cast<int>((channels_of(unit) - 1) * plane) + rows.count() * width;
    return {tensor + first * plane + rows.first * width, to, image < images_of(unit) ? count : 0};
  }
  template <typename Type>
  __device__ Run<Type> source_run(Type* tensor, const Unit& unit, int image, char* to) const {
    return run(tensor, unit, image, source_rows(unit), g.h.source, g.w.source,
               to + image * g.image_step);
  }
  template <typename Type>
  __device__ Run<Type> result_run(Type* tensor, const Unit& unit, int image, char* to) const {
    return run(tensor, unit, image, result_rows(unit), g.h.result, g.w.result,
               to + image * g.image_step);
  }
  template <typename Type>
  __device__ Run<Type> filters(Type* weight, const Unit& unit, char* to) const {
    const int count = g.h.kernel * filter_width;
    return {weight + first_channel(unit) * count, to, channels_of(unit) * count};
  }
};

// Where the planes of a unit begin in shared memory: each image's run as far behind 16 bytes as it
// does in global memory.
struct Places {
  std::uint32_t shared;  // of the first image
  int step;              // to the next
  unsigned global;       // where that begins, of which the last bits count
  unsigned global_step;
  int plane_bytes;

  template <typename Type>
  __device__ Places(const Run<Type>& first, int step_, int channels, int plane)
      : shared(shared_address(first.shared)),
        step(step_),
        global(static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(first.global))),
        global_step(2u * channels * plane),
        plane_bytes(2 * plane) {}
  __device__ std::uint32_t at(int image, int channel) const {
    return shared + image * step + ((global + image * global_step) & 15) + channel * plane_bytes;
  }
};

// Stores a word where `index` is below `count`, without a branch.
__device__ inline void store_word_below(std::uint32_t at, std::uint32_t word, int index,
                                        int count) {
  asm volatile(
      "{\n"
      " .reg .pred there;\n"
      " setp.lt.s32 there, %2, %3;\n"
      " @there st.shared.u32 [%0], %1;\n"
      "}\n" ::"r"(at),
      "r"(word), "r"(index), "r"(count)
      : "memory");
}
__device__ inline void store_element_below(std::uint32_t at, std::uint32_t element, int index,
                                           int count) {
  asm volatile(
      "{\n"
      " .reg .pred there;\n"
      " setp.lt.s32 there, %2, %3;\n"
      " @there st.shared.u16 [%0], %1;\n"
      "}\n" ::"r"(at),
      "h"(static_cast<std::uint16_t>(element)), "r"(index), "r"(count)
      : "memory");
}

// A word that is loaded each time: ptxas would keep the one it has and move it, for a product's
// operands are neighbouring registers.
__device__ inline std::uint32_t load_again(std::uint32_t at) {
  std::uint32_t word;
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}

// The columns of the unit's filters, twice each.
__device__ inline void spread_taps(std::uint32_t* to, const std::uint16_t* filters,
                                   const Grid& grid) {
  const Geometry& g = grid.g;
  const auto tap = [&](const std::uint16_t* column, int row) -> std::uint32_t {
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(g.h.kernel)) return 0;
    return column[(grid.mirrored ? g.h.kernel - 1 - row : row) * grid.filter_width];
  };
  const int words = g.copy_bytes / 4;
  for (int i = threadIdx.x; i < g.channels * g.w.kernel * words; i += blockDim.x) {
    int column = i;
    const int word = grid.copy_words.remainder(column);
    int channel = column;
    const int of_filter = g.first_tap + grid.taps.remainder(channel);
    const std::uint16_t* from = filters + channel * g.h.kernel * grid.filter_width +
                                (grid.mirrored ? grid.filter_width - 1 - of_filter : of_filter);
    const int row = 2 * word - kTapMargin;
    const std::uint32_t first = tap(from, row), second = tap(from, row + 1);
    to[2 * column * words + word] = first | second << 16;
    to[(2 * column + 1) * words + word] = second | tap(from, row + 2) << 16;
  }
}

// The unit's planes, column after column.
template <Shape shape>
__device__ inline void turn_planes(std::uint32_t turned, const Places& places, const Grid& grid,
                                   const Unit& unit, int warp, int warps) {
  const Geometry& g = grid.g;
  const int rows = grid.source_rows(unit).count();
  const int channels = grid.channels_of(unit);
  const int items = grid.images_of(unit) * g.channels * g.parts;
  turned += g.lead * shape.column_bytes();
#pragma unroll 1
  for (int item = warp; item < items; item += warps) {
    int plane = item;
    const int part = grid.parts.remainder(plane);
    int image = plane;
    const int channel = grid.unit_channels.remainder(image);
    if (channel >= channels) continue;
    std::uint32_t from = places.at(image, channel);
    std::uint32_t to = turned + plane * g.plane_bytes;
#pragma unroll 1
    for (int first = 0; first < rows; first += shape.rows()) {
      turn_tile<shape>(to, from, grid.source, rows - first, part, g.parts);
      from += shape.rows() * 2 * g.w.source;
      to += g.sheet_bytes;
    }
  }
}

}  // namespace dwconv::columns
