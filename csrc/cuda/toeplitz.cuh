// The Toeplitz family: forward and input gradient. The results leave through shared memory, as they
// lie in global memory.
#pragma once

#include "toeplitz.h"
#include "toeplitz_choice.cuh"
#include "toeplitz_walk.cuh"

namespace dwconv::toeplitz {

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

    const UnitRows<A> rows(p, unit);
    const std::int64_t first_plane = grid.first_plane(unit);
    const Runs from(grid.source, first_plane, channels, rows.source);
    const Runs to(grid.result, first_plane, channels, rows.result);
    walk_tasks<false>(
        p, place, first_task, unit, rows, from, run, to, staged, biases, shared,
        [&](int channel) { return Matrices<A>{matrices + channel * matrices_of_channel}; });
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
  const Convolution p(g, problem, plan);
  const auto kernel = backward ? choose<Convolutions<S>, Mode::dense, Mode::phases>(g.access)
                               : choose<Convolutions<S>, Mode::dense, Mode::strided>(g.access);
  launch_convolution<S>("toeplitz convolve", kernel, p, problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
