// The Toeplitz family: forward and input gradient. A warp goes down the rows of 16 positions of a
// channel; each row of the image is multiplied by the Toeplitz matrix of every filter row, and adds
// to that many rows of results. The results leave through shared memory, as they lie in global
// memory.
#pragma once

#include "launch_units.cuh"
#include "toeplitz.h"
#include "toeplitz_choice.cuh"
#include "toeplitz_filter.cuh"
#include "toeplitz_window.cuh"

namespace dwconv::toeplitz {

// Where a lane's results go: of two positions, two neighbouring columns of a strip, or with phases
// four.
template <typename S, typename A>
struct Output {
  static constexpr int kColumns = A::mode == Mode::phases ? 4 : 2;
  int at[2];  // bytes of shared memory, in the row that is counted as 0
  bool has[2][kColumns];

  // One row, `row` bytes from row 0.
  template <bool pairs>
  __device__ void store(char* row, const float (&sums)[kColumns / 2][4]) const {
    using Type = typename S::Type;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      auto* to = reinterpret_cast<Type*>(row + at[i]);
      if constexpr (pairs) {
        if (has[i][0]) store_pair(to, sums[0][2 * i], sums[0][2 * i + 1]);
      } else {
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (has[i][c]) to[c] = S::round(sums[c % (kColumns / 2)][2 * i + c / (kColumns / 2)]);
      }
    }
  }
};

// What a lane does for the positions of a task, as far as it is the same for every unit.
template <typename S, typename A>
class Place {
 public:
  __device__ void set(const Convolution& p, const Task& task, int images) {
    if (task.channel == channel_ && task.position == position_ && images == images_) return;
    channel_ = task.channel;
    position_ = task.position;
    images_ = images;
    constexpr bool phases = A::mode == Mode::phases;
    constexpr int columns = Output<S, A>::kColumns;
    const Grid& grid = p.grid;
    const Geometry& g = grid.g;
    const int lane = threadIdx.x % 32, positions = images * g.strips;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int index = task.position + lane / 4 + 8 * i;
      const bool there = index < positions;
      const Position at = grid.position(there ? index : 0);
      const int column = g.source_column(at.strip);
      image_.set_columns(i, column, g.last_column(at.strip));
      image_.at[i] =
          at.image * g.source_run +
          2 * (task.channel * static_cast<int>(grid.source.plane) + column + lane % 4 * 2);
      const int first =
          (at.strip * kColumns + lane % 4 * 2) * (columns / 2) - (phases ? p.pad_w : 0);
#pragma unroll
      for (int c = 0; c < columns; ++c)
        out_.has[i][c] =
            there && static_cast<unsigned>(first + c) < static_cast<unsigned>(grid.result.row);
      out_.at[i] = at.image * g.result_run +
                   2 * (task.channel * static_cast<int>(grid.result.plane) + first);
      source_[i] = static_cast<std::uint8_t>(at.image * grid.source.image);
      result_[i] = static_cast<std::uint8_t>(at.image * grid.result.image);
    }
  }
  // With the runs of a unit that begin at `at` in shared memory.
  __device__ Image<A::unit, A::windows> image_in(int at, const Runs& runs) const {
    auto image = image_;
    runs.move(image.at, at, source_);
    return image;
  }
  __device__ Output<S, A> output_in(int at, const Runs& runs) const {
    auto out = out_;
    runs.move(out.at, at, result_);
    return out;
  }

 private:
  int channel_ = -1, position_ = -1, images_ = -1;
  Image<A::unit, A::windows> image_;
  Output<S, A> out_;
  // Elements from the first image to the position's: see Runs::lead.
  std::uint8_t source_[2], result_[2];
};

template <int tiles>
__device__ inline void set(float (&row)[tiles][4], float value) {
#pragma unroll
  for (auto& tile : row)
#pragma unroll
    for (float& sum : tile)
      sum = value;
}

// Four numbers that are equal, which the compiler is not told: it would put them together anew for
// each of the instructions that take them.
__device__ inline void spread(float (&four)[4], float value) {
#pragma unroll
  for (float& one : four)
    asm volatile("mov.b32 %0, %1;" : "=f"(one) : "f"(value));
}
// A product that is not computed anew for each step.
__device__ inline int in_register(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A walk down the rows of a task. Step t of the source adds to results t - ring + 1 to t, which are
// under way at a time. Result t - ring, finished one step before, is stored while the next rows are
// loaded.
template <typename S, typename A, bool pairs>
__device__ inline void walk(const Convolution& p, Image<A::unit, A::windows> image,
                            const Steps& steps, int source_rows, const uint2* matrices, float start,
                            Output<S, A> out, RowRange result_rows, char* shared) {
  using Type = typename S::Type;
  constexpr int ring = A::ring;
  constexpr bool phases = A::mode == Mode::phases;
  constexpr int tiles = phases ? 2 : 1;  // of columns
  std::uint32_t filter[A::kernel_h][A::parts][2];
#pragma unroll
  for (int i = 0; i < A::kernel_h; ++i)
#pragma unroll
    for (int part = 0; part < A::parts; ++part) {
      const uint2 two = matrices[(i * A::parts + part) * 32 + threadIdx.x % 32];
      filter[i][part][0] = two.x;
      filter[i][part][1] = two.y;
    }
  float starts[4];
  spread(starts, start);
  float sums[ring][A::result_rows][tiles][4];
#pragma unroll
  for (auto& results : sums)
#pragma unroll
    for (auto& row : results)
      set(row, start);

  const int dilation = p.grid.g.h.dilation;  // 1 but in dense mode
  const int pitch = p.grid.g.w.source * 2, result_pitch = p.grid.result.row * 2;
  // Rows are loaded one step ahead, the last one twice.
  int source_row = steps.row + steps.first * A::source_rows * dilation;
  const int step = in_register(A::source_rows * dilation * pitch);
  // With phases a task may have no step at all.
  if (A::source_rows == 1) advance(image.at, max(min(source_row, source_rows - 1), 0) * pitch);
  const int way = (steps.last - 1 - steps.first) * step;
  const int last[2] = {image.at[0] + way, image.at[1] + way};
  typename Image<A::unit, A::windows>::Words words[A::source_rows];
  const auto load = [&] { load_rows(words, image, shared, source_row, source_rows, pitch); };
  const int result_step = A::result_rows * dilation;
  const int out_step = in_register(result_step * result_pitch);
  // The result that is finished: its place among those of the task, and its first row.
  int result = steps.first - ring;
  int result_row = result_rows.first + result * result_step;
  advance(out.at, result_row * result_pitch);
  const int first_stored = max(result_rows.first, 0);  // of phases
  const RowRange stored{first_stored, max(result_rows.last, first_stored)};

  load();
#pragma unroll 1
  for (;;) {
#pragma unroll
    for (int r = 0; r < ring; ++r) {
      if constexpr (phases) {
#pragma unroll
        for (int row = 0; row < A::result_rows; ++row)
          if (stored.holds(result_row + row))
            out.template store<pairs>(shared + row * result_pitch, sums[r][row]);
      } else {
        if (static_cast<unsigned>(result) < static_cast<unsigned>(steps.results))
          out.template store<pairs>(shared, sums[r][0]);
      }
      if (result + ring >= steps.last) {
        if (phases ? result_row + result_step >= stored.last : result + 1 >= steps.results) return;
        // Rows of the input that no result of the forward pass has read.
        if constexpr (phases) {
#pragma unroll
          for (auto& row : sums[r])
            set(row, 0);
        }
      } else {
        std::uint32_t window[A::source_rows][A::windows][4];
#pragma unroll
        for (int i = 0; i < A::source_rows; ++i)
          image.arrange(window[i], words[i]);
        const RowRange source{-source_row, source_rows - source_row};
        if constexpr (A::source_rows == 1) {
          advance(image.at, step, last);
        } else {
          source_row += A::source_rows * dilation;
        }
        load();
        // No last tap begins the second row.
        if constexpr (phases && A::kernel_h % 2 == 1) set(sums[r][1], 0);
        // The oldest results first: they are needed first.
#pragma unroll
        for (int i = 0; i < A::source_rows; ++i) {
          if (A::source_rows > 1 && !source.holds(i)) continue;
#pragma unroll
          for (int m = ring - 1; m >= 0; --m) {
            auto& sum = sums[(r - m + ring) % ring];
#pragma unroll
            for (int row = 0; row < A::result_rows; ++row) {
              const int tap = phases ? 2 * (ring - 1 - m) + row : A::source_rows * m + i;
              if (tap >= A::kernel_h) continue;
#pragma unroll
              for (int part = 0; part < A::parts; ++part) {
                const bool first = m == 0 && (phases || i + part == 0);
                float (&tile)[4] = sum[row][part % tiles];
                multiply_add<Type>(tile, window[i][part % A::windows], filter[tap][part],
                                   first ? starts : tile);
              }
            }
          }
        }
      }
      ++result;
      result_row += result_step;
      advance(out.at, out_step);
    }
  }
}

template <typename S, typename A>
__global__ void __launch_bounds__(kThreads, resident_blocks(A::value, false))
    convolve(const __grid_constant__ Convolution p, const typename S::Type* __restrict__ source,
             const typename S::Type* __restrict__ weight, const typename S::Type* __restrict__ bias,
             typename S::Type* __restrict__ result) {
  if constexpr (!kTensorCores) return;
  using Type = typename S::Type;
  constexpr bool phases = A::mode == Mode::phases;
  constexpr int matrices_of_channel = A::kernel_h * A::parts * 32;
  extern __shared__ __align__(16) char shared[];
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int warp = warp_index();
  auto* matrices = reinterpret_cast<uint2*>(shared + g.rest_at);
  auto* biases = reinterpret_cast<float*>(matrices + g.channels * matrices_of_channel);

  const auto load = [&](RunLoader& loader, int slot, char* stage, const Unit& unit) {
    const Runs runs(grid.source, grid.first_plane(unit), grid.channels_of(unit),
                    grid.source_rows(unit));
    const int images = grid.images_of(unit);
    const auto run = [&](int i) {
      return Run<const Type>{source + (runs.first + i * grid.source.image),
                             stage + i * g.source_run, i < images ? runs.count : 0};
    };
    if constexpr (phases) {
      loader.load(slot, run);
    } else {
      loader.load(slot, p.use, run);
    }
  };
  int filters_of = -1;
  const Task first_task = grid.task(warp);
  Place<S, A> place;
  for (Pipeline pipeline(grid, shared, g.images, load); pipeline.more(); pipeline.advance()) {
    const Unit& unit = pipeline.unit();
    const int channels = grid.channels_of(unit), images = grid.images_of(unit);
    if (unit.group != filters_of) {
      filters_of = unit.group;
      const std::int64_t channel = grid.first_channel(unit);
      const int taps = A::kernel_h * p.kernel_w;
      for (int i = warp; i < channels; i += kWarps)
        store_matrices<A>(matrices + i * matrices_of_channel, p, weight + (channel + i) * taps);
      for (int i = threadIdx.x; i < channels; i += kThreads)
        biases[i] = bias == nullptr ? 0.f : S::widen(bias[channel + i]);
    }
    pipeline.wait_for_place();
    const int staged = pipeline.results_at();
    const auto run = static_cast<int>(pipeline.wait() - shared);

    const RowRange source_rows = grid.source_rows(unit);
    RowRange result_rows = grid.result_rows(unit);
    const int rows = result_rows.count();
    const int top = result_rows.first * g.h.stride - g.h.pad - source_rows.first;
    // Results of the unit's first step, counted from the first that there is.
    int first_result = 0;
    if constexpr (phases) {
      const int first = 2 * result_rows.first - p.pad_h;
      const int last = min(2 * result_rows.last - p.pad_h, p.result_h);
      result_rows = {max(first, 0), max(last, 0)};  // the padding may hold a whole band
      first_result = first - result_rows.first;
    }
    const std::int64_t first_plane = grid.first_plane(unit);
    const Runs from(grid.source, first_plane, channels, source_rows);
    const Runs to(grid.result, first_plane, channels, result_rows);
    for (int number = warp; number < grid.tasks; number += kWarps) {
      const Task task = number == warp ? first_task : grid.task(number);
      const Steps steps = Steps::of<A>(grid, task, top, source_rows.count(), rows);
      if (task.channel >= channels || task.position >= images * g.strips || steps.results <= 0)
        continue;
      place.set(p, task, images);
      const Image<A::unit, A::windows> image = place.image_in(run, from);
      const Output<S, A> out = place.output_in(staged, to);
      // Rows of results of the task: without dilation they follow each other.
      const int first_row = first_result + A::result_rows * task.row;
      const int step = A::result_rows * g.row_classes;
      const RowRange of_task{first_row, min(first_row + steps.results * step, result_rows.count())};
      const uint2* filters = matrices + task.channel * matrices_of_channel;
      const float start = biases[task.channel];
      if (!phases && p.grid.result.row % 2 == 0) {
        walk<S, A, true>(p, image, steps, source_rows.count(), filters, start, out, of_task,
                         shared);
      } else {
        walk<S, A, false>(p, image, steps, source_rows.count(), filters, start, out, of_task,
                          shared);
      }
    }
    publish();
    __syncthreads();
    send_runs<Type>(images, [&](int i) {
      return Run<Type>{result + (to.first + i * grid.result.image),
                       shared + staged + i * g.result_run, to.count};
    });
  }
  wait_until_sent<0>();
}

template <typename S>
using Convolve = void (*)(Convolution, const typename S::Type*, const typename S::Type*,
                          const typename S::Type*, typename S::Type*);

template <typename S>
struct Convolutions {
  using Kernel = Convolve<S>;
  template <typename A>
  static constexpr Kernel of() {
    return convolve<S, A>;
  }
};

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream) {
  using S = Scalar<dtype>;
  const bool backward = problem.pass == Pass::backward_input;
  const Geometry g = geometry(problem, plan.tiling);
  const Axis &h = problem.h, &w = problem.w;
  const Convolution p{.grid = Grid(g, problem, plan),
                      .mirrored = backward,
                      .dilation_w = SmallDivisor(g.w.dilation),
                      .kernel_w = static_cast<int>(w.kernel),
                      .result_h = static_cast<int>(backward ? h.input : h.output()),
                      .pad_h = static_cast<int>(h.pad_before),
                      .pad_w = static_cast<int>(w.pad_before),
                      .use = use_of(plan)};
  const auto kernel = backward ? choose<Convolutions<S>, Mode::dense, Mode::phases>(g.access)
                               : choose<Convolutions<S>, Mode::dense, Mode::strided>(g.access);
  launch_convolution<S>("toeplitz convolve", kernel, p, problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
