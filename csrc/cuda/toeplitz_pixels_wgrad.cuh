// The Toeplitz family, channels_last: weight gradient. A block gathers the pixels of a unit's
// images and of their output gradients as planes, and walks down them as if they had come
// contiguous. A unit has more channels than a block has warps, so sums stay in shared memory
// between units.
#pragma once

#include "toeplitz_planes.cuh"
#include "toeplitz_wgrad.cuh"

namespace dwconv::toeplitz {

struct PixelGrid : Grid {
  Pixels input, grad;

  PixelGrid(const Geometry& g, const Problem& problem, const Plan& plan)
      : Grid(g, problem, plan),
        input(source_pixels(*this, problem)),
        grad(result_pixels(*this, problem)) {}
};

// What a warp adds to the sums of one channel of a unit, whose planes are in shared memory: of
// `sharers` warps that have it between them, every so many of its tasks.
template <typename S, typename A>
class ChannelSums {
 public:
  __device__ ChannelSums(const PixelGrid& grid, char* shared, float* products)
      : grid_(grid), shared_(shared), products_(products) {}

  // Sums for the bias as well, wanted or not: kernels without would be half as many again.
  __device__ void add(const Unit& unit, int channel, int share, float* totals, float* of_bias,
                      bool fresh) {
    const Geometry& g = grid_.g;
    const int images = grid_.images_of(unit);
    const RowRange source_rows = grid_.source_rows(unit), result_rows = grid_.result_rows(unit);
    const int top = result_rows.first * g.h.stride - g.h.pad - source_rows.first;
    SummedPlace<A> place;
    float bias_sum = 0;
    int pending = 0;  // steps that the matrices hold
    int i = share;
    // The matrices are added in one place: in two, that was a third of what the compiler had to do.
    do {
      for (; i < g.channel_tasks() && pending < kMostSteps; i += g.sharers) {
        const Task task = grid_.task(channel * g.channel_tasks() + i);
        const Steps steps =
            Steps::of<A>(grid_, task, top, source_rows.count(), result_rows.count());
        if (task.position >= images * g.strips || steps.results <= 0) continue;
        place.set(grid_, task, images);
        walk<typename S::Type, A, true>(grid_, place.image_in(g.stages_at, Runs()),
                                        place.gradient_in(g.grad_at(), Runs()), steps,
                                        source_rows.count(), task.row, shared_, sums_, bias_sum);
        pending += max(steps.last - steps.first, 0);
      }
      if (pending > 0 || fresh) {
        add_diagonals<A>(g, sums_, products_, totals, fresh);
        if (of_bias != nullptr) add_columns(bias_sum, *of_bias, fresh);
      }
      fresh = false;
      pending = 0;
    } while (i < g.channel_tasks());
  }

 private:
  const PixelGrid& grid_;
  char* shared_;
  float* products_;
  float sums_[A::kernel_h][A::windows][4] = {};
};

template <typename S, typename A>
__global__ void __launch_bounds__(pixel_sum_threads(A::value), resident_pixel_sum_blocks(A::value))
    sum_pixels(const __grid_constant__ UnitSums<PixelGrid> p,
               const typename S::Type* __restrict__ input,
               const typename S::Type* __restrict__ grad_output, float* __restrict__ partial,
               const Gradients<S> result) {
  if constexpr (!kTensorCores) return;
  extern __shared__ __align__(16) char shared[];
  const PixelGrid& grid = p.grid;
  const Geometry& g = grid.g;
  if (!p.partials.whole) let_next_kernel_start();
  constexpr int threads = pixel_sum_threads(A::value);
  const int warp = warp_index();
  const int of_channel = p.partials.sums();
  auto* totals = reinterpret_cast<float*>(shared + g.rest_at);
  auto* products = reinterpret_cast<float*>(shared + g.products_at(of_channel));
  // A warp takes every so many channels of a unit, from its own on.
  const int takers = threads / 32 / g.sharers, taker = warp / g.sharers;
  const int share = warp - taker * g.sharers;
  ChannelSums<S, A> sums(grid, shared, products + warp * A::windows * kWindow * kSumPitch);
  bool fresh = true;  // sums begin anew
  Unit unit = grid.dealer.first(blockIdx.x);
#pragma unroll 1
  for (int left = grid.dealer.count(blockIdx.x); left > 0; --left) {
    const int channels = grid.channels_of(unit), images = grid.images_of(unit);
    by_channels(grid.input, [&]<int per>() {
      const RowRange source = grid.source_rows(unit), gradient = grid.result_rows(unit);
      gather<per>(grid.input, input, grid.input.first(grid, unit, source.first), channels,
                  source.count(), images, shared + g.stages_at);
      gather<per>(grid.grad, grad_output, grid.grad.first(grid, unit, gradient.first), channels,
                  gradient.count(), images, shared + g.grad_at());
    });
    __syncthreads();
    for (int channel = taker < takers ? taker : channels; channel < channels; channel += takers) {
      float* const of_taps = totals + (share * g.channels + channel) * of_channel;
      float* const of_bias = p.partials.bias ? of_taps + of_channel - 1 : nullptr;
      sums.add(unit, channel, share, of_taps, of_bias, fresh);
    }
    fresh = false;
    const int group = unit.group;
    grid.dealer.advance(unit);
    __syncthreads();
    if (left > 1 && unit.group == group) continue;
    fresh = true;
    const Sink<S> sink(p, partial, result, shared + g.stages_at, group);
    for (int i = threadIdx.x; i < channels * of_channel; i += threads) {
      const int channel = i / of_channel;
      float sum = totals[i];
      for (int other = 1; other < g.sharers; ++other)
        sum += totals[other * g.channels * of_channel + i];
      sink.put(channel, i - channel * of_channel, sum);
    }
    sink.close(channels);
  }
}

template <typename S>
struct SumPixels {
  using Kernel = void (*)(UnitSums<PixelGrid>, const typename S::Type*, const typename S::Type*,
                          float*, Gradients<S>);
  static constexpr bool takes(const Access& a) { return takes_pixels(a, true); }
  template <typename A>
  static constexpr Kernel of() {
    return sum_pixels<S, A>;
  }
};

template <DType dtype>
void launch_sum_pixels(const Problem& problem, const Plan& plan, const Tensors& tensors,
                       cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  launch_unit_sums<S>("toeplitz sum_pixels",
                      choose<SumPixels<S>, Mode::dense, Mode::strided>(g.access),
                      PixelGrid(g, problem, plan), problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
