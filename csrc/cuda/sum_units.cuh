// Weight gradients by units: what their kernels are given, and how they are launched.
#pragma once

#include "launcher.h"
#include "pipeline.cuh"
#include "reduce.cuh"

namespace dwconv {

template <typename Grid>
struct UnitSums {
  Grid grid;
  Partials partials;
};

// `kernel` sums the units of each block; what blocks have of the same group is added by a second
// one.
template <typename S, typename Grid, typename Kernel>
void launch_unit_sums(const char* name, Kernel kernel, const Grid& grid, const Problem& problem,
                      const Plan& plan, const Tensors& tensors, cudaStream_t stream) {
  using Type = typename S::Type;
  const UnitSums<Grid> p{grid, partials_of(problem, grid.g, plan.blocks, plan.whole_groups)};
  allow_shared(kernel, grid.g.shared_bytes);
  auto* partial = static_cast<float*>(tensors.workspace);
  auto* result = static_cast<Type*>(tensors.weight);
  kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, grid.g.shared_bytes, stream>>>(
      p, static_cast<const Type*>(tensors.input), static_cast<const Type*>(tensors.output), partial,
      result);
  check_launch(name);
  launch_add_partials<S>(p.partials, partial, result, stream);
}

}  // namespace dwconv
