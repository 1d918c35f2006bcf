// The hankel family: weight gradient, whose rows come as they lie in memory, whatever their length.
#pragma once

#include "bulk.cuh"
#include "hankel_sums.cuh"
#include "uniform.cuh"

namespace dwconv::hankel {

// A warp lays every eighth row of an output gradient out, each at a multiple of 16 bytes and with
// zeros behind it. The first of them begins at `from`.
__device__ inline void lay_rows(std::uint32_t from, int width, std::uint32_t to, int pitch,
                                int pairs, int rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int pair = lane; pair < pairs; pair += 32) {
    const int left = width - 4 * pair;  // elements
    const auto mask_of = [&](int i) {
      return (left > 2 * i ? 0xffffu : 0) | (left > 2 * i + 1 ? 0xffff0000u : 0);
    };
    const std::uint32_t first = mask_of(0), second = mask_of(1);
    // Beyond the row nothing is read.
    std::uint32_t at = from + kPairBytes * min(pair, (width - 1) / 4);
    const std::uint32_t shift = at % 4 * 8;
    at -= at % 4;
    std::uint32_t there = to + kPairBytes * pair;
#pragma unroll 2
    for (int row = 0; row < rows; ++row) {
      std::uint32_t words[3];
#pragma unroll
      for (int i = 0; i < 3; ++i)
        words[i] = load_shared_word(at + 4 * i);
      store_shared_pair(there, __funnelshift_r(words[0], words[1], shift) & first,
                        __funnelshift_r(words[1], words[2], shift) & second);
      at += kWarps * 2 * width;
      there += kWarps * pitch;
    }
  }
}

template <typename S, int columns, int rows, int steps>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_runs(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
             const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
             const Gradients<S> result) {
#if __CUDA_ARCH__ >= 800
  using Type = typename S::Type;
  extern __shared__ __align__(128) char shared[];
  const Geometry& g = p.g;
  let_next_kernel_start();
  TileSums<S, columns, rows, steps, true> tile(p, shared, grad_output);
  const int begin = tile.tile_w - g.w.pad;
  ImageRows<true> image_rows(g.w.source, g.shape, shared + g.copies_at);
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);

  // Rows of an image of a unit, or of its output gradient: where they are in memory, and where they
  // go; none where there is no such image.
  const auto height_of = [&](bool source) { return source ? g.h.source : g.h.result; };
  const auto width_of = [&](bool source) { return source ? g.w.source : g.w.result; };
  const auto plane_of = [&](const UnitRows& r, int image) {
    return static_cast<std::int64_t>(r.image + image) * p.channels + tile.channel;
  };
  const auto place_of = [&](int slot, int image, bool source) {
    return g.stages_at + slot * g.stage_bytes +
           (source ? image * g.source_image_bytes : g.result_at + image * g.run_bytes);
  };
  const auto run_of = [&](const UnitRows& r, int slot, int image, bool source) {
    const RowRange& range = source ? r.source : r.result;
    return Run<const Type>{
        (source ? input : grad_output) +
            (plane_of(r, image) * height_of(source) + range.first) * width_of(source),
        shared + place_of(slot, image, source),
        image < r.images ? range.count() * width_of(source) : 0};
  };
  // The first of them in shared memory, at the same offset within 16 bytes as in memory, of which
  // 32 bits tell enough.
  const std::uint32_t all = shared_address(shared);
  const auto address_of = [&](const UnitRows& r, int slot, int image, bool source) {
    const auto row = static_cast<std::uint32_t>(plane_of(r, image)) * height_of(source) +
                     (source ? r.source : r.result).first;
    const auto base =
        static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(source ? input : grad_output));
    return all + place_of(slot, image, source) + ((base + 2 * row * width_of(source)) & 15);
  };
  RunLoader loader(reinterpret_cast<std::uint64_t*>(shared), kRunStages, 2 * g.images);
  const auto load = [&](int unit) {
    if (unit >= tile.last_unit || !loader.loads()) return;
    const UnitRows r = tile.rows_of(unit);
    const int slot = (unit - tile.first_unit) % kRunStages;
    loader.load(slot, [&](int i) { return run_of(r, slot, i % g.images, i < g.images); });
  };
  zero_shared(shared + g.zeros_at, g.shared_bytes - g.zeros_at);
  __syncthreads();
  load(tile.first_unit);
#pragma unroll 1
  for (int unit = tile.first_unit; unit < tile.last_unit; ++unit) {
    const int slot = (unit - tile.first_unit) % kRunStages;
    loader.wait(slot, 0);
#if __CUDA_ARCH__ < 900
    __syncthreads();
#endif
    const UnitRows r = tile.rows_of(unit);
    const std::uint32_t gradients = all + g.gradients_at + slot * g.images * g.result_image_bytes;
#pragma unroll 1
    for (int image = 0; image < r.images; ++image) {
      if (warp >= r.result.count()) break;
      lay_rows(address_of(r, slot, image, false) + 2 * warp * g.w.result, g.w.result,
               gradients + image * g.result_image_bytes + warp * g.result_pitch, g.result_pitch,
               g.steps() * kStep / 4, (r.result.count() - warp - 1) / kWarps + 1);
    }
    // Nobody reads the unit before any more, and rows are laid out.
    __syncthreads();
    load(unit + 1);
    tile.add(
        r, uniform((warp + unit) % kWarps), gradients,
        [&](int image) { return address_of(r, slot, image, true) + 2 * begin; }, image_rows);
    tile.add_bias(unit);
  }
  tile.finish(partial, result);
#endif
}

}  // namespace dwconv::hankel
