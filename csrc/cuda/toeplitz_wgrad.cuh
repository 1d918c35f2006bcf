// The Toeplitz family: weight gradient. The same windows of 16 columns at 16 positions, now summed
// over the positions: times the strips of the output gradient they give, for each filter row, a
// 16 x 8 matrix of products whose diagonals are the gradients of its taps. A warp keeps the
// matrices of one channel in registers over all units of its block's run; warps, and then blocks,
// are added in a fixed order.
#pragma once

#include "launch_units.cuh"
#include "mma.cuh"
#include "toeplitz.h"
#include "toeplitz_choice.cuh"
#include "toeplitz_window.cuh"

namespace dwconv::toeplitz {

using WeightGradient = UnitSums<Grid>;

// A walk down the rows of a task. `ring` rows of the output gradient stay: step t of the source
// meets rows t - ring + 1 to t of it. For the bias, the columns of the strips themselves are
// summed, by a matrix of ones; in a walk of its own, or all would pay for it (3 % in float16).
template <typename Type, typename A, bool with_bias>
__device__ inline void walk(const Grid& grid, TurnedImage<A::unit, A::windows> image,
                            Gradient gradient, const Steps& steps, int source_rows, int grad_row,
                            const char* shared, float (&sums)[A::kernel_h][A::windows][4],
                            float& bias_sum) {
  if (steps.first >= steps.last) return;
  constexpr int ring = A::ring;
  const int dilation = grid.g.h.dilation;  // 1 but in dense mode
  const int pitch = grid.g.w.source * 2, grad_pitch = grid.result.row * 2;
  const int grad_step = grad_pitch * dilation;
  int source_row = steps.row + steps.first * A::source_rows * dilation;
  typename TurnedImage<A::unit, A::windows>::Words words[A::source_rows];
  Gradient::Words grad_words;
  const auto load = [&] { load_rows(words, image, shared, source_row, source_rows, pitch); };
  if (A::source_rows == 1) advance(image.at, source_row * pitch);
  load();
  float columns[4] = {};  // the lane's two of the strip, twice
  const auto add_to_bias = [&](const std::uint32_t (&strip)[2]) {
    constexpr std::uint32_t one = std::is_same_v<Type, __half> ? 0x3c003c00 : 0x3f803f80;
    constexpr std::uint32_t ones[4] = {one, one, one, one};
    if (with_bias) multiply_add<Type>(columns, ones, strip, columns);
  };
  // Rows of the gradient that meet the first step: all but the newest are arranged here.
  int t = steps.first - (ring - 1);
  advance(gradient.at, grad_row * grad_pitch + t * grad_step);
  std::uint32_t strip[ring][2] = {};
#pragma unroll
  for (int i = 0; i < ring - 1; ++i) {
    if (t >= 0 && t < steps.results) {
      gradient.load(grad_words, shared);
      gradient.arrange(strip[i], grad_words, true);
      add_to_bias(strip[i]);
    }
    advance(gradient.at, grad_step);
    ++t;
  }
  if (t < steps.results) gradient.load(grad_words, shared);
#pragma unroll 1
  for (;;) {
#pragma unroll
    for (int r = 0; r < ring; ++r) {
      const int newest = (r + ring - 1) % ring;
      std::uint32_t window[A::source_rows][A::windows][4];
#pragma unroll
      for (int i = 0; i < A::source_rows; ++i)
        image.arrange(window[i], words[i]);
      gradient.arrange(strip[newest], grad_words, t < steps.results);
      add_to_bias(strip[newest]);
      const RowRange source{-source_row, source_rows - source_row};
      if constexpr (A::source_rows == 1) {
        advance(image.at, dilation * pitch);
      } else {
        source_row += A::source_rows;
      }
      advance(gradient.at, grad_step);
      ++t;
      if (t < steps.last) load();
      if (t < steps.results) gradient.load(grad_words, shared);
#pragma unroll
      for (int i = 0; i < A::source_rows; ++i) {
        if (A::source_rows > 1 && !source.holds(i)) continue;
#pragma unroll
        for (int tap = i; tap < A::kernel_h; tap += A::source_rows)
#pragma unroll
          for (int w = 0; w < A::windows; ++w)
            multiply_add<Type>(sums[tap][w], window[i][w],
                               strip[(newest - tap / A::source_rows + ring) % ring], sums[tap][w]);
      }
      if (t >= steps.last) {
        if (with_bias) bias_sum += columns[0] + columns[1];
        return;
      }
    }
  }
}

// What a lane does for the positions of a task, as far as it is the same for every unit.
template <typename A>
class SummedPlace {
 public:
  using Turned = TurnedImage<A::unit, A::windows>;

  __device__ void set(const Grid& grid, const Task& task, int images) {
    if (task.position == position_ && images == images_) return;
    position_ = task.position;
    images_ = images;
    const Geometry& g = grid.g;
    const int positions = images * g.strips;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int index = task.position + summed_position(i);
      const bool there = index < positions;
      const Position at = grid.position(there ? index : 0);
      const int column = g.source_column(at.strip);
      image_.set_columns(i, column - g.lead, g.last_column(at.strip) - g.lead);
      image_.at[i] =
          at.image * g.source_run + 2 * (task.channel * static_cast<int>(grid.source.plane) +
                                         column + Turned::first_column());
      const int in_strip = static_cast<int>(threadIdx.x) % 32 / 4;
      const int mine = at.strip * g.columns + in_strip;
      gradient_.at[i] =
          at.image * g.result_run + 2 * (task.channel * static_cast<int>(grid.result.plane) + mine);
      set_half(gradient_.keep[i / 2], i % 2, there && in_strip < g.columns && mine < g.w.result);
      source_[i] = static_cast<std::uint8_t>(at.image * grid.source.image);
      grad_[i] = static_cast<std::uint8_t>(at.image * grid.result.image);
    }
  }
  // With the runs of a unit that begin at `at` in shared memory.
  __device__ Turned image_in(int at, const Runs& runs) const {
    auto image = image_;
    runs.move(image.at, at, source_);
    return image;
  }
  __device__ Gradient gradient_in(int at, const Runs& runs) const {
    auto gradient = gradient_;
    runs.move(gradient.at, at, grad_);
    return gradient;
  }

 private:
  int position_ = -1, images_ = -1;
  Turned image_;
  Gradient gradient_;
  // Elements from the first image to the position's: see Runs::lead.
  std::uint8_t source_[4], grad_[4];
};

// The diagonals of a warp's matrices: column m of the window and column n of the strip meet in tap
// (m - shift - n * stride) / dilation. A lane adds one tap of a filter row to the totals, which
// begin anew if they are `fresh`. The matrices become zero.
template <typename A>
__device__ inline void add_diagonals(const Geometry& g, float (&sums)[A::kernel_h][A::windows][4],
                                     float* products, float* totals, bool fresh) {
  const int lane = threadIdx.x % 32;
  using Turned = TurnedImage<A::unit, A::windows>;
#pragma unroll
  for (int row = 0; row < A::kernel_h; ++row) {
#pragma unroll
    for (int w = 0; w < A::windows; ++w)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = w * kWindow + Turned::column_of(lane / 4 + i / 2 * 8);
        products[column * kSumPitch + lane % 4 * 2 + i % 2] = sums[row][w][i];
        sums[row][w][i] = 0;
      }
    __syncwarp();
    if (lane < g.w.kernel) {
      const int first = g.shift + lane * g.w.dilation;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        // A window that holds the image may not hold all that a tap meets.
        const auto column = static_cast<unsigned>(first + n * g.w.stride);
        if (n < g.columns && column < A::windows * kWindow) sum += products[column * kSumPitch + n];
      }
      float& total = totals[row * g.w.kernel + lane];
      total = fresh ? sum : total + sum;
    }
    __syncwarp();
  }
}

// And the columns of the strips, of which four lanes have two each.
__device__ inline void add_columns(float& bias_sum, float& total, bool fresh) {
  float sum = bias_sum;
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (threadIdx.x % 32 == 0) total = fresh ? sum : total + sum;
  bias_sum = 0;
}

template <typename S, typename A>
__global__ void __launch_bounds__(kThreads, resident_blocks(A::value, true))
    sum_units(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              const Gradients<S> result) {
  if constexpr (!kTensorCores) return;
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  if (!p.partials.whole) let_next_kernel_start();
  const int warp = warp_index();
  const bool with_bias = p.partials.bias;
  const int of_channel = p.partials.sums();
  auto* totals = reinterpret_cast<float*>(shared + g.rest_at);  // of each warp
  float* products = totals + kWarps * of_channel + warp * A::windows * kWindow * kSumPitch;
  const int grad_at = g.images * g.source_run;  // in a stage

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    const int channels = grid.channels_of(unit), images = grid.images_of(unit);
    const std::int64_t first_plane = grid.first_plane(unit);
    const Runs source(grid.source, first_plane, channels, grid.source_rows(unit));
    const Runs grad(grid.result, first_plane, channels, grid.result_rows(unit));
    loader.load(slot, p.use, [&](int i) {
      const int image = i < g.images ? i : i - g.images;
      const bool there = image < images;
      return i < g.images
                 ? Run<const Type>{input + (source.first + image * grid.source.image),
                                   stage + image * g.source_run, there ? source.count : 0}
                 : Run<const Type>{grad_output + (grad.first + image * grid.result.image),
                                   stage + grad_at + image * g.result_run, there ? grad.count : 0};
    });
  };
  // A warp stays with one channel of the group; those of a channel take its tasks in turn.
  const int warps = kWarps / g.channels;
  const int of_group = warp / warps;
  float sums[A::kernel_h][A::windows][4] = {};
  float bias_sum = 0;  // of a lane's columns
  bool fresh = true;
  int pending = 0;  // steps that the matrices hold
  SummedPlace<A> place;
  Pipeline pipeline(grid, shared, 2 * g.images, load);
  while (pipeline.more()) {
    const Unit unit = pipeline.unit();
    const int channels = grid.channels_of(unit), images = grid.images_of(unit);
    const auto run = static_cast<int>(pipeline.wait() - shared);

    const RowRange source_rows = grid.source_rows(unit);
    const RowRange result_rows = grid.result_rows(unit);
    const std::int64_t first_plane = grid.first_plane(unit);
    const Runs source(grid.source, first_plane, channels, source_rows);
    const Runs grad(grid.result, first_plane, channels, result_rows);
    const int top = result_rows.first * g.h.stride - g.h.pad - source_rows.first;
    const int tasks = of_group < channels ? grid.tasks / g.channels : 0;
    for (int number = warp - of_group * warps; number < tasks; number += warps) {
      const Task task = grid.task(of_group * tasks + number);
      const Steps steps = Steps::of<A>(grid, task, top, source_rows.count(), result_rows.count());
      if (task.position >= images * g.strips || steps.results <= 0) continue;
      place.set(grid, task, images);
      const auto image = place.image_in(run, source);
      const Gradient gradient = place.gradient_in(run + grad_at, grad);
      if (with_bias) {
        walk<Type, A, true>(grid, image, gradient, steps, source_rows.count(), task.row, shared,
                            sums, bias_sum);
      } else {
        walk<Type, A, false>(grid, image, gradient, steps, source_rows.count(), task.row, shared,
                             sums, bias_sum);
      }
      pending += max(steps.last - steps.first, 0);
    }

    pipeline.advance();
    const bool group_ends = !pipeline.more() || pipeline.unit().group != unit.group;
    if (group_ends || pending >= kMostSteps) {
      float* of_warp = totals + warp * of_channel;
      add_diagonals<A>(g, sums, products, of_warp, fresh);
      if (with_bias) add_columns(bias_sum, of_warp[of_channel - 1], fresh);
      fresh = false;
      pending = 0;
    }
    if (!group_ends) continue;
    __syncthreads();
    fresh = true;
    const Sink<S> sink(p, partial, result, shared + g.stages_at, unit.group);
    for (int i = threadIdx.x; i < channels * of_channel; i += kThreads) {
      const int channel = i / of_channel;
      const int index = i - channel * of_channel;
      const float* from = totals + channel * warps * of_channel + index;
      float sum = from[0];
      for (int other = 1; other < warps; ++other)
        sum += from[other * of_channel];
      sink.put(channel, index, sum);
    }
    sink.close(channels);
  }
}

template <typename S>
struct SumKernels {
  using Kernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                          Gradients<S>);
  template <typename A>
  static constexpr Kernel of() {
    return sum_units<S, A>;
  }
};

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  launch_unit_sums<S>("toeplitz sum_units",
                      choose<SumKernels<S>, Mode::dense, Mode::strided>(g.access),
                      Grid(g, problem, plan), problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
