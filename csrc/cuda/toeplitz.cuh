// The Toeplitz family: forward and input gradient. A warp goes down the rows of 16 positions of a
// channel; each row of the image is multiplied by the Toeplitz matrix of every filter row, and adds
// to that many rows of results. The results leave through shared memory in wide stores.
#pragma once

#include "check.cuh"
#include "mma.cuh"
#include "toeplitz.h"
#include "toeplitz_feed.cuh"

namespace dwconv::toeplitz {

struct Convolution {
  Grid grid;
  int stages;
  bool mirrored;  // turn the filters round
};

// A lane's share of the Toeplitz matrices of a channel: column k of the window meets result n of
// the strip in tap k - n - shift, if there is one.
template <int reach, typename Type>
__device__ inline void load_filter(std::uint32_t (&filter)[reach][2], const Convolution& p,
                                   const Type* __restrict__ channel) {
  const Geometry& g = p.grid.g;
  const auto* bits = reinterpret_cast<const std::uint16_t*>(channel);
  const int lane = threadIdx.x % 32;
  const int taps = g.h.kernel * g.w.kernel;
  int offset[4];
  bool met[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int tap = lane % 4 * 2 + i % 2 + i / 2 * 8 - lane / 4 - g.shift;
    met[i] = tap >= 0 && tap < g.reach_w && p.grid.dilation_w.remainder(tap) == 0;
    offset[i] = p.mirrored ? taps - 1 - tap : tap;
  }
  int first = 0, wait = 0;  // the row's first tap; rows until the next that has taps
#pragma unroll
  for (int row = 0; row < reach; ++row) {
    std::uint16_t value[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (wait == 0 && met[i]) value[i] = bits[offset[i] + first];
    filter[row][0] = value[0] | static_cast<std::uint32_t>(value[1]) << 16;
    filter[row][1] = value[2] | static_cast<std::uint32_t>(value[3]) << 16;
    if (wait == 0) {
      first += p.mirrored ? -g.w.kernel : g.w.kernel;
      wait = g.h.dilation;
    }
    --wait;
  }
}

// Where a lane's results go: two neighbouring columns of two positions, row after row.
template <typename S>
struct Output {
  typename S::Type* at[2];
  int rows[2];         // that have a first column
  int second_rows[2];  // that have a second
  int pitch;

  template <bool aligned>
  __device__ void store(int row, const float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (aligned) {
        if (row < rows[i]) store_pair(at[i], sums[2 * i], sums[2 * i + 1]);
      } else {
        if (row < rows[i]) at[i][0] = S::round(sums[2 * i]);
        if (row < second_rows[i]) at[i][1] = S::round(sums[2 * i + 1]);
      }
      at[i] += pitch;
    }
  }
};

// `reach` rows of results are under way at a time: row t of the window adds to rows t - reach + 1
// to t. Row t - reach, finished one row before, is stored while the next is loaded.
template <typename S, int reach, bool aligned>
__device__ inline void walk(std::uint32_t at, int step, int rows,
                            const std::uint32_t (&filter)[reach][2], float bias, Output<S> out) {
  using Type = typename S::Type;
  float start[4] = {bias, bias, bias, bias};
  float sums[reach][4];
  std::uint32_t window[4];
  const int last = rows + reach - 1;
  unroll<reach>([&](auto row) {
    constexpr int t = decltype(row)::value;
    load_matrices(window, at);
    at += step;
#pragma unroll
    for (int i = t; i >= 0; --i)
      multiply_add<Type>(sums[t - i], window, filter[i], i == 0 ? start : sums[t - i]);
    return true;
  });
#pragma unroll 1
  for (int first = reach;; first += reach) {
    const bool more = unroll<reach>([&](auto row) {
      constexpr int t = decltype(row)::value;
      load_matrices(window, at);
      at += step;
      out.template store<aligned>(first + t - reach, sums[t]);
      if (first + t == last) return false;
#pragma unroll
      for (int i = reach - 1; i >= 0; --i) {
        auto& sum = sums[(t - i + reach) % reach];
        multiply_add<Type>(sum, window, filter[i], i == 0 ? start : sum);
      }
      return true;
    });
    if (!more) return;
  }
}

// What a lane does for 16 positions of a plane, as far as it is the same for every unit.
struct Task {
  int number = -1;
  int image, from;  // of the position that it loads: the first element in the tile
  int to_image[2];  // of those whose results it stores
  int to_row[2];
  int to[2];            // the first element in the plane's results
  bool one[2], two[2];  // whether its columns are results

  __device__ void set(const Grid& grid, int task, int plane, int first) {
    const Geometry& g = grid.g;
    const int lane = threadIdx.x % 32;
    number = task;
    const Position source = grid.position(first + lane % 16);
    image = source.image;
    from = source.image * g.source.image + plane * g.source.stage.plane +
           source.row * g.source.stage.pitch + source.strip * kColumns + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Position result = grid.position(first + lane / 4 + 8 * i);
      const int column = result.strip * kColumns + lane % 4 * 2;
      to_image[i] = result.image;
      to_row[i] = result.row;
      to[i] = result.image * g.result + result.row * g.w.result + column;
      one[i] = column < g.w.result;
      two[i] = column + 1 < g.w.result;
    }
  }
};

template <typename S, int reach>
__global__ void __launch_bounds__(kThreads, resident_blocks(reach))
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
  if constexpr (!kTensorCores) return;
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* staged = reinterpret_cast<Type*>(shared + g.rest_at);
  const Feeder<Type> feeder(grid, g.source, source, shared);
  const auto result_plane = static_cast<std::int64_t>(g.h.result) * g.w.result;

  const std::int64_t begin = run_begin(g.units, blockIdx.x, gridDim.x);
  const auto units = static_cast<int>(run_begin(g.units, blockIdx.x + 1, gridDim.x) - begin);
  Unit next = Unit::at(begin, g.image_blocks, g.bands);
  Unit unit = next;

  zero_shared(shared, g.source.table_at);
  feeder.prepare();
  __syncthreads();

  std::uint32_t filter[reach][2];
  float channel_bias = 0;
  int slot = 0, next_slot = 0, filter_of = -1;
  Task task;
  // The first rounds only start copies.
  for (int index = 1 - p.stages; index < units; ++index) {
    if (index >= 0) {
      wait_for_copies(p.stages - 2);
      __syncthreads();
    }
    if (index + p.stages - 1 < units) {
      feeder.load(next, next_slot);
      next.advance(g.image_blocks, g.bands);
      if (++next_slot == p.stages) next_slot = 0;
    }
    commit_copies();
    if (index < 0) continue;
    if (g.source.raw > 0) {
      feeder.place(unit, slot);
      __syncthreads();
    }

    const int planes = grid.planes(unit), images = grid.images(unit), rows = grid.rows(unit);
    const int plane_results = rows * g.w.result;
    const int batches = (images * g.walks * g.strips + kPositions - 1) / kPositions;
    const Type* tile = feeder.tile(slot);
    Type* run = result + grid.first_plane(unit) * result_plane +
                static_cast<std::int64_t>(unit.band) * g.rows * g.w.result;
    // An image's results begin anywhere in 16 bytes, and lie likewise in shared memory.
    const std::int64_t image_results = grid.channels * result_plane;
    const int run_start = misalignment(run);
    const int run_step = static_cast<int>(image_results) & (kVector - 1);

    for (int number = warp; number < planes * batches; number += kWarps) {
      const int plane = batches == 1 ? number : number / batches;
      const int channel = unit.group * g.planes + plane;
      if (channel != filter_of) {
        filter_of = channel;
        const int taps = g.h.kernel * g.w.kernel;
        load_filter<reach>(filter, p, weight + static_cast<std::int64_t>(channel) * taps);
        channel_bias = bias == nullptr ? 0.f : S::widen(bias[channel]);
      }
      // The last images may be missing, and with them batches: tasks are numbered with all there.
      const int first = number - plane * batches;
      if (task.number != plane * g.batches + first)
        task.set(grid, plane * g.batches + first, plane, first * kPositions);

      Output<S> out;
      out.pitch = g.w.result;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int valid = task.to_image[i] < images ? min(g.walk_rows, rows - task.to_row[i]) : 0;
        out.rows[i] = task.one[i] ? valid : 0;
        out.second_rows[i] = task.two[i] ? valid : 0;
        out.at[i] = staged + task.to[i] + plane * plane_results +
                    ((run_start + task.to_image[i] * run_step) & (kVector - 1));
      }
      const bool valid = task.image < images;
      const std::uint32_t zeros = shared_address(shared) + lane / 16 * 16;
      const std::uint32_t address = valid ? shared_address(tile + task.from) : zeros;
      const int step = valid ? g.source.stage.pitch * static_cast<int>(sizeof(Type)) : 0;
      if (g.w.result % 2 == 0) {
        walk<S, reach, true>(address, step, g.walk_rows, filter, channel_bias, out);
      } else {
        walk<S, reach, false>(address, step, g.walk_rows, filter, channel_bias, out);
      }
    }
    __syncthreads();

    const Share share(g.images);
    Type* to = run + share.first * image_results;
    const Type* from = staged + share.first * g.result;
    for (int image = share.first; image < images; image += share.step) {
      const int start = misalignment(to);
      store_share(to - start, from, start, planes * plane_results, share);
      to += share.step * image_results;
      from += share.step * g.result;
    }
    unit.advance(g.image_blocks, g.bands);
    if (++slot == p.stages) slot = 0;
  }
}

template <typename S>
using Convolve = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                          const typename S::Type*, typename S::Type*);

template <typename S, int... reach>
Convolve<S> convolve_of(int reach_h, std::integer_sequence<int, reach...>) {
  constexpr Convolve<S> table[] = {convolve<S, reach + 1>...};
  return table[reach_h - 1];
}

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const bool mirrored = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, plan.tiling);
  const Convolution p{.grid = Grid(g, problem), .stages = plan.tiling.stages, .mirrored = mirrored};
  const auto kernel = convolve_of<S>(g.reach_h, std::make_integer_sequence<int, kMaxReachH>{});
  allow_shared(kernel, g.shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), kThreads, g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(mirrored ? tensors.output : tensors.input),
      static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
      static_cast<Type*>(mirrored ? tensors.input : tensors.output));
  check_launch("toeplitz convolve");
}

}  // namespace dwconv::toeplitz
