#include "../toeplitz_wgrad.cuh"

namespace dwconv::toeplitz {

template <>
void launch<Pass::backward_weight, DType::bfloat16, Layout::nchw>(const Problem& problem,
                                                                  const Plan& plan,
                                                                  const Tensors& tensors,
                                                                  cudaStream_t stream) {
  launch_sum_units<DType::bfloat16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
