// How kernels that walk over units are launched: convolutions, and weight gradients.
#pragma once

#include "launcher.h"
#include "pipeline.cuh"
#include "reduce.cuh"

namespace dwconv {

// Forward, or input gradient: `kernel` takes source, filters, bias and result after `p`, which has
// the grid of units, and then what else it wants.
template <typename S, typename Kernel, typename Convolution, typename... Rest>
void launch_convolution(const char* name, Kernel kernel, const Convolution& p,
                        const Problem& problem, const Plan& plan, const Tensors& tensors,
                        cudaStream_t stream, const Rest&... rest) {
  using Type = typename S::Type;
  const bool backward = problem.pass == Pass::backward_input;
  const int shared_bytes = p.grid.g.shared_bytes;
  allow_shared(kernel, shared_bytes);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, shared_bytes, stream>>>(
      p, static_cast<const Type*>(backward ? tensors.output : tensors.input),
      static_cast<const Type*>(tensors.weight), static_cast<const Type*>(tensors.bias),
      static_cast<Type*>(backward ? tensors.input : tensors.output), rest...);
  check_launch(name);
}

// What the kernels of weight gradients are given.
template <typename Grid>
struct UnitSums {
  Grid grid;
  Partials partials;
  int team;  // of blocks, which add their sums; 1: each is alone
  Use use;   // of input and output gradient
};

// `kernel` sums the units of each block. What blocks have of the same group is added by their team,
// or by a second kernel.
template <typename S, typename Grid, typename Kernel>
void launch_unit_sums(const char* name, Kernel kernel, const Grid& grid, const Problem& problem,
                      const Plan& plan, const Tensors& tensors, cudaStream_t stream) {
  using Type = typename S::Type;
  const UnitSums<Grid> p{grid, partials_of(problem, grid.g, plan.blocks, plan.whole_groups),
                         plan.team, use_of(plan)};
  allow_shared(kernel, grid.g.shared_bytes);
  auto* partial = static_cast<float*>(tensors.workspace);
  const Gradients<S> result{static_cast<Type*>(tensors.weight), static_cast<Type*>(tensors.bias)};
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.team), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(plan.blocks);
  config.blockDim = static_cast<unsigned>(plan.threads);
  config.dynamicSmemBytes = static_cast<unsigned>(grid.g.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = plan.team > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, p, static_cast<const Type*>(tensors.input),
                           static_cast<const Type*>(tensors.output), partial, result),
        name);
  launch_add_partials<S>(p.partials, plan.sums_overlap, partial, result, stream);
}

}  // namespace dwconv
