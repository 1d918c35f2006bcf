#include "../hankel_wgrad.cuh"

namespace dwconv::hankel {

template <>
void launch<Pass::backward_weight, DType::float16, Layout::nchw>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_sum_products<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_weight, DType::bfloat16, Layout::nchw>(const Problem& problem,
                                                                  const Plan& plan,
                                                                  const Tensors& tensors,
                                                                  cudaStream_t stream) {
  launch_sum_products<DType::bfloat16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::hankel
