// The Toeplitz family: how a warp of the forward pass or of an input gradient goes down the rows of
// 16 positions of a channel: each row of the image is multiplied by the Toeplitz matrix of every
// filter row, and adds to that many rows of results.
#pragma once

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
    if (task.position == position_ && images == images_) return;
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
      const bool in_strip = there && lane % 4 * 2 < g.columns;
      image_.set_columns(i, column - g.lead, g.last_column(at.strip) - g.lead);
      image_.at[i] = at.image * g.source_run + 2 * (column + lane % 4 * 2);
      const int first =
          (at.strip * g.columns + lane % 4 * 2) * (columns / 2) - (phases ? p.pad_w : 0);
#pragma unroll
      for (int c = 0; c < columns; ++c)
        out_.has[i][c] =
            in_strip && static_cast<unsigned>(first + c) < static_cast<unsigned>(grid.result.row);
      out_.at[i] = at.image * g.result_run + 2 * first;
      source_[i] = static_cast<std::uint8_t>(at.image * grid.source.image);
      result_[i] = static_cast<std::uint8_t>(at.image * grid.result.image);
    }
  }
  // With a channel's planes of a unit that begin at `at` in shared memory.
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
  int position_ = -1, images_ = -1;
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
// loaded. `filters.load(filter)` brings the Toeplitz matrices of the channel.
template <typename S, typename A, bool pairs, typename Filters>
__device__ inline void walk(const Convolution& p, Image<A::unit, A::windows> image,
                            const Steps& steps, int source_rows, const Filters& filters,
                            float start, Output<S, A> out, RowRange result_rows, char* shared) {
  using Type = typename S::Type;
  constexpr int ring = A::ring;
  constexpr bool phases = A::mode == Mode::phases;
  constexpr int tiles = phases ? 2 : 1;  // of columns
  std::uint32_t filter[A::kernel_h][A::parts][2];
  filters.load(filter);
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

// The rows of a unit. With phases, results of the first step may lie above the first that there is.
template <typename A>
struct UnitRows {
  RowRange source, result;
  int results;           // of the geometry's
  int top;               // the first row that is read, counted from the first of the source
  int first_result = 0;  // of the first step, counted from the first of the results

  __device__ UnitRows(const Convolution& p, const Unit& unit)
      : source(p.grid.source_rows(unit)),
        result(p.grid.result_rows(unit)),
        results(result.count()),
        top(result.first * p.grid.g.h.stride - p.grid.g.h.pad - source.first) {
    if constexpr (A::mode == Mode::phases) {
      const int first = 2 * result.first - p.pad_h;
      const int last = min(2 * result.last - p.pad_h, p.result_h);
      result = {max(first, 0), max(last, 0)};  // the padding may hold a whole band
      first_result = first - result.first;
    }
  }
};

// A warp's tasks of a unit, whose source begins `run` bytes into shared memory, and whose results
// go to `staged`. `filters_of(channel)` is what `walk` takes. With `planes` they were made here of
// pixels, with even rows, so that pairs of results are always stored together.
template <bool planes, typename S, typename A, typename FiltersOf>
__device__ inline void walk_tasks(const Convolution& p, Place<S, A>& place, const Task& first_task,
                                  const Unit& unit, const UnitRows<A>& rows, const Runs& from,
                                  int run, const Runs& to, int staged, const float* biases,
                                  char* shared, const FiltersOf& filters_of) {
  const Grid& grid = p.grid;
  const Geometry& g = grid.g;
  const int warp = warp_index();
  const int channels = grid.channels_of(unit), images = grid.images_of(unit);
  constexpr int warps = planes ? pixel_threads(A::value) / 32 : kWarps;
  for (int number = warp; number < grid.tasks; number += warps) {
    const Task task = number == warp ? first_task : grid.task(number);
    const Steps steps = Steps::of<A>(grid, task, rows.top, rows.source.count(), rows.results);
    if (task.channel >= channels || task.position >= images * g.strips || steps.results <= 0)
      continue;
    place.set(p, task, images);
    const auto image = place.image_in(run + grid.source.bytes_to(task.channel), from);
    const Output<S, A> out = place.output_in(staged + grid.result.bytes_to(task.channel), to);
    // Rows of results of the task: without dilation they follow each other.
    const int first_row = rows.first_result + A::result_rows * task.row;
    const int step = A::result_rows * g.row_classes;
    const RowRange of_task{first_row, min(first_row + steps.results * step, rows.result.count())};
    const auto walk_as = [&]<bool pairs>() {
      walk<S, A, pairs>(p, image, steps, rows.source.count(), filters_of(task.channel),
                        biases[task.channel], out, of_task, shared);
    };
    constexpr bool phases = A::mode == Mode::phases;
    if constexpr (phases) {
      walk_as.template operator()<false>();
    } else if constexpr (planes) {
      walk_as.template operator()<true>();
    } else if (grid.result.row % 2 == 0) {
      walk_as.template operator()<true>();
    } else {
      walk_as.template operator()<false>();
    }
  }
}

}  // namespace dwconv::toeplitz
