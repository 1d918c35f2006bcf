// The hankel family: weight gradient, whose rows the copy engine of sm_90 brings with zeros around
// them.
#pragma once

#include "hankel_sums.cuh"
#include "rows.cuh"
#include "uniform.cuh"

namespace dwconv::hankel {

struct BoxMaps {
  CUtensorMap source, result;
};

// Of contiguous images: to the copy engine, their columns are channels, rows columns, and channels
// rows.
template <DType dtype>
BoxMaps box_maps(const Geometry& g, const Problem& problem, const Tensors& tensors) {
  const auto map_of = [&](const void* tensor, int height, int width, int pitch, int rows) {
    return tensor_map<dtype>(
        tensor, problem.batch, problem.channels, height, width,
        {.channels = pitch / 2, .columns = rows, .images = g.images, .step = 1});
  };
  return {map_of(tensors.input, g.h.source, g.w.source, g.source_pitch, g.source_rows),
          map_of(tensors.output, g.h.result, g.w.result, g.result_pitch, g.result_rows)};
}

template <typename S, int columns, int rows, int steps>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_boxes(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              const Gradients<S> result, const __grid_constant__ BoxMaps maps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(dwconv::rows::kBoxAlignment) char shared[];
  const Geometry& g = p.g;
  let_next_kernel_start();
  TileSums<S, columns, rows, steps, false> tile(p, shared, grad_output);
  // The first column that the tile sees, and the multiple of 8 before it, as the copy engine wants.
  const int begin = tile.tile_w - g.w.pad;
  const int first_column = begin & ~7;
  ImageRows<false> image_rows(g.w.source, g.shape, shared + g.copies_at);
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);

  zero_shared(shared + g.zeros_at, g.shared_bytes - g.zeros_at);
  __syncthreads();
  const auto load = [&](int number, std::uint32_t stage, std::uint32_t barrier) {
    const UnitRows r = tile.rows_of(tile.first_unit + number);
    expect_bytes(barrier, g.box_bytes());
    load_box(stage, maps.source, first_column + r.column, r.source.first, tile.channel, r.image,
             barrier);
    load_box(stage + g.result_at, maps.result, r.column, r.result.first, tile.channel, r.image,
             barrier);
  };
  dwconv::rows::Ring<kBoxStages, decltype(load)> ring(shared, g.stage_bytes,
                                                      tile.last_unit - tile.first_unit, load);
#pragma unroll 1
  for (int unit = tile.first_unit; unit < tile.last_unit; ++unit) {
    // Whose rows are one more than another's, that changes.
    const int first = uniform((warp + unit) % kWarps);
    const UnitRows r = tile.rows_of(unit);
    const std::uint32_t stage = ring.wait() + 2 * (begin - first_column);
    tile.add(
        r, first, stage - 2 * (begin - first_column) + g.result_at,
        [&](int image) { return stage + image * g.source_image_bytes; }, image_rows);
    ring.leave();
    tile.add_bias(unit);
  }
  tile.finish(partial, result);
#endif
}

}  // namespace dwconv::hankel
