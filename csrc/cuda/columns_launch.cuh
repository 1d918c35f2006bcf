// Which of the family's kernels a pass takes.
#pragma once

#include "columns.h"

namespace dwconv::columns {

template <DType dtype>
void launch_convolve(const Problem& problem, const Plan& plan, const Tensors& tensors,
                     cudaStream_t stream);
template <DType dtype>
void launch_sum_products(const Problem& problem, const Plan& plan, const Tensors& tensors,
                         cudaStream_t stream);

template <Pass pass, DType dtype, Layout layout>
void launch(const Problem& problem, const Plan& plan, const Tensors& tensors, cudaStream_t stream) {
  if constexpr (pass == Pass::backward_weight) {
    launch_sum_products<dtype>(problem, plan, tensors, stream);
  } else {
    launch_convolve<dtype>(problem, plan, tensors, stream);
  }
}

}  // namespace dwconv::columns
