// The hankel family: which of its weight gradient's kernels a plan takes.
#pragma once

#include "hankel.h"
#include "hankel_boxes.cuh"
#include "hankel_runs.cuh"

namespace dwconv::hankel {

template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream) {
  using S = Scalar<dtype>;
  const Geometry g = geometry(problem, plan.tiling);
  const WeightGradient p(g, problem, plan);
  for_shape(g.shape, [&]<int columns, int rows, int steps>() {
    if (g.boxes) {
      launch_slices<S>("hankel sum_boxes", sum_boxes<S, columns, rows, steps>, p, plan, tensors,
                       stream, box_maps<dtype>(g, problem, tensors));
    } else {
      launch_slices<S>("hankel sum_runs", sum_runs<S, columns, rows, steps>, p, plan, tensors,
                       stream);
    }
  });
}

}  // namespace dwconv::hankel
