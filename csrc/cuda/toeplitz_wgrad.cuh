// The Toeplitz family: weight gradient. The same windows of 16 columns at 16 positions, now summed
// over the positions: times the strips of the output gradient they give, for each filter row, a
// 16 x 8 matrix of products whose diagonals are the gradients of its taps. A warp keeps the
// matrices of one channel in registers over all units of its block's run; warps, and then blocks,
// are added in a fixed order.
#pragma once

#include "check.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "toeplitz.h"
#include "toeplitz_choice.cuh"
#include "toeplitz_window.cuh"

namespace dwconv::toeplitz {

struct WeightGradient {
  Grid grid;
  Partials partials;
};

// A walk down the rows of a task. `ring` rows of the output gradient stay: step t of the source
// meets rows t - ring + 1 to t of it. `source` and `grad` are where their loaded rows begin.
template <typename Type, typename A>
__device__ inline void walk(const Grid& grid, const TurnedImage<A::unit, A::windows>& image,
                            const Gradient& gradient, const Steps& steps, int source_rows,
                            int grad_row, const char* shared,
                            float (&sums)[A::kernel_h][A::windows][4]) {
  constexpr int ring = A::ring;
  const int dilation = A::mode == Mode::dense ? grid.g.h.dilation : 1;
  const int pitch = grid.g.w.source * 2, grad_pitch = grid.g.w.result * 2;
  typename TurnedImage<A::unit, A::windows>::Words words[A::source_rows];
  Gradient::Words grad_words;
  std::uint32_t strip[ring][2] = {};
  // Rows of the gradient before the first step that meets the source are met, too.
  int t = max(steps.first - ring + 1, 0);
  int source_row = steps.row + t * A::source_rows * dilation;
  const int last_grad = grad_row + (steps.results - 1) * dilation;
  grad_row += t * dilation;
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < A::source_rows; ++i)
      image.load(words[i], shared + max(min(source_row + i, source_rows - 1), 0) * pitch);
    gradient.load(grad_words, shared + min(grad_row, last_grad) * grad_pitch);
  };
  load();
#pragma unroll 1
  for (;;) {
#pragma unroll
    for (int r = 0; r < ring; ++r) {
      if (t >= steps.last) return;
      std::uint32_t window[A::source_rows][A::windows][4];
#pragma unroll
      for (int i = 0; i < A::source_rows; ++i)
        image.arrange(window[i], words[i]);
      gradient.arrange(strip[r], grad_words, t < steps.results);
      const RowRange source{-source_row, source_rows - source_row};
      source_row += A::source_rows * dilation;
      grad_row += dilation;
      load();
#pragma unroll
      for (int i = 0; i < A::source_rows; ++i) {
        if (!source.holds(i)) continue;
#pragma unroll
        for (int tap = i; tap < A::kernel_h; tap += A::source_rows)
#pragma unroll
          for (int w = 0; w < A::windows; ++w)
            multiply_add<Type>(sums[tap][w], window[i][w],
                               strip[(r - tap / A::source_rows + ring) % ring], sums[tap][w]);
      }
      ++t;
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
      image_.set_columns(i, column, min(g.w.source, column + g.shift + g.w.reach(kColumns)));
      image_.at[i] =
          at.image * g.source_run +
          2 * (task.plane * static_cast<int>(grid.source.plane) + column + Turned::first_column());
      const int mine = at.strip * kColumns + threadIdx.x % 32 / 4;
      gradient_.at[i] =
          at.image * g.result_run + 2 * (task.plane * static_cast<int>(grid.result.plane) + mine);
      set_half(gradient_.keep[i / 2], i % 2, there && mine < g.w.result);
      source_[i] = static_cast<std::uint8_t>(at.image * grid.source.image);
      grad_[i] = static_cast<std::uint8_t>(at.image * grid.result.image);
    }
  }
  // With the runs of a unit that begin at `at` in shared memory.
  __device__ Turned image_in(int at, const Runs& runs) const {
    auto image = image_;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      image.at[i] += at + runs.lead(source_[i]);
    return image;
  }
  __device__ Gradient gradient_in(int at, const Runs& runs) const {
    auto gradient = gradient_;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      gradient.at[i] += at + runs.lead(grad_[i]);
    return gradient;
  }

 private:
  int position_ = -1, images_ = -1;
  Turned image_;
  Gradient gradient_;
  // Elements from the first image to the position's, modulo 256: see Runs::lead.
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
      const float* from = products + (g.shift + lane * g.w.dilation) * kSumPitch;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        sum += from[n * (g.w.stride * kSumPitch + 1)];
      float& total = totals[row * g.w.kernel + lane];
      total = fresh ? sum : total + sum;
    }
    __syncwarp();
  }
}

template <typename S, typename A>
__global__ void __launch_bounds__(kThreads, resident_blocks(A::value, true))
    sum_units(const __grid_constant__ WeightGradient p, const typename S::Type* __restrict__ input,
              const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
              typename S::Type* __restrict__ result) {
  if constexpr (!kTensorCores) return;
  using Type = typename S::Type;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  if (!p.partials.whole) let_next_kernel_start();
  const int warp = warp_index();
  const auto all_warps = static_cast<int>(blockDim.x) / 32;
  const int taps = A::kernel_h * g.w.kernel;
  auto* totals = reinterpret_cast<float*>(shared + g.rest_at);  // of each warp
  float* products = totals + all_warps * taps + warp * A::windows * kWindow * kSumPitch;
  const int grad_at = g.images * g.source_run;  // in a stage

  const std::int64_t begin = grid.dealer.begin(blockIdx.x);
  const std::int64_t end = grid.dealer.begin(blockIdx.x + 1);
  Unit next = grid.dealer.unit(begin);
  Unit unit = next;
  RunLoader loader(reinterpret_cast<std::uint64_t*>(shared + g.barriers_at), grid.stages,
                   2 * g.images);
  const auto load = [&](std::int64_t index, int slot) {
    if (index >= end) return loader.skip();
    const int planes = grid.planes(next), images = grid.images(next);
    const std::int64_t first_plane = grid.first_plane(next);
    const Runs source(grid.source, first_plane, planes, grid.source_rows(next));
    const Runs grad(grid.result, first_plane, planes, grid.result_rows(next));
    char* stage = shared + kMarginBytes + slot * g.stage_bytes;
    loader.load(slot, [&](int i) {
      const bool first = i < g.images;
      if (!first) i -= g.images;
      const std::int64_t from =
          first ? source.first + i * grid.source.image : grad.first + i * grid.result.image;
      return Run<const Type>{(first ? input : grad_output) + from,
                             stage + (first ? i * g.source_run : grad_at + i * g.result_run),
                             i >= images ? 0
                             : first     ? source.count
                                         : grad.count};
    });
    grid.advance(next);
  };
  __syncthreads();
  for (int i = 0; i < grid.stages - 1; ++i)
    load(begin + i, i);

  // A warp stays with one plane of the group; those of a plane take its positions in turn.
  const int warps = all_warps / g.planes;
  const int plane = warp / warps;
  float sums[A::kernel_h][A::windows][4] = {};
  bool fresh = true;
  int pending = 0;  // steps that the matrices hold
  int slot = 0;
  SummedPlace<A> place;
  for (std::int64_t index = begin; index < end; ++index) {
    const int planes = grid.planes(unit), images = grid.images(unit);
    loader.wait(slot, grid.stages - 2);
    __syncthreads();
    load(index + grid.stages - 1, slot == 0 ? grid.stages - 1 : slot - 1);

    const RowRange source_rows = grid.source_rows(unit);
    const RowRange result_rows = grid.result_rows(unit);
    const std::int64_t first_plane = grid.first_plane(unit);
    const Runs source(grid.source, first_plane, planes, source_rows);
    const Runs grad(grid.result, first_plane, planes, result_rows);
    const int run = kMarginBytes + slot * g.stage_bytes;
    const int top = result_rows.first * g.h.stride - g.h.pad - source_rows.first;
    const int tasks = plane < planes ? g.row_classes * g.walks * g.batches : 0;
    for (int number = warp - plane * warps; number < tasks; number += warps) {
      Task task = grid.task(number);
      task.plane = plane;
      const Steps steps = Steps::of<A>(grid, task, top, source_rows.count(), result_rows.count());
      if (task.position >= images * g.strips || steps.results <= 0) continue;
      place.set(grid, task, images);
      walk<Type, A>(grid, place.image_in(run, source), place.gradient_in(run + grad_at, grad),
                    steps, source_rows.count(), task.row, shared, sums);
      pending += steps.last - steps.first;
    }

    const int group = unit.group;
    grid.advance(unit);
    if (++slot == grid.stages) slot = 0;
    const bool group_ends = index + 1 == end || unit.group != group;
    if (group_ends || pending >= kMostSteps) {
      add_diagonals<A>(g, sums, products, totals + warp * taps, fresh);
      fresh = false;
      pending = 0;
    }
    if (!group_ends) continue;
    __syncthreads();
    fresh = true;
    const Sink<S> sink(p.partials, partial, result, group);
    for (int i = threadIdx.x; i < planes * taps; i += blockDim.x) {
      const int of_plane = i / taps;
      const float* from = totals + of_plane * warps * taps + i - of_plane * taps;
      float sum = from[0];
      for (int other = 1; other < warps; ++other)
        sum += from[other * taps];
      sink.put(i, sum);
    }
  }
}

template <typename S>
struct SumKernels {
  using Kernel = void (*)(WeightGradient, const typename S::Type*, const typename S::Type*, float*,
                          typename S::Type*);
  template <typename A>
  static constexpr Kernel of() {
    return sum_units<S, A>;
  }
};

template <DType dtype>
void launch_sum_units(const Problem& problem, const Plan& plan, const Tensors& tensors,
                      cudaStream_t stream) {
  using S = Scalar<dtype>;
  using Type = typename S::Type;
  const Geometry g = geometry(problem, plan.tiling);
  const WeightGradient p{.grid = Grid(g, problem, plan),
                         .partials = partials_of(problem, g, plan.blocks, plan.slices == 1)};
  const auto kernel = choose<SumKernels<S>, Mode::dense, Mode::strided>(g.access);
  allow_shared(kernel, g.shared_bytes);
  auto* partial = static_cast<float*>(tensors.workspace);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output), partial,
      static_cast<Type*>(tensors.weight));
  check_launch("toeplitz sum_units");
  launch_add_partials<S>(p.partials, partial, static_cast<Type*>(tensors.weight), stream);
}

}  // namespace dwconv::toeplitz
