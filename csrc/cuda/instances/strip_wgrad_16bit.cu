#include "../strip_wgrad.cuh"

namespace dwconv::strip {

template <>
void launch<Pass::backward_weight, DType::float16, Layout::nhwc>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_sum_tiles<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_weight, DType::bfloat16, Layout::nhwc>(const Problem& problem,
                                                                  const Plan& plan,
                                                                  const Tensors& tensors,
                                                                  cudaStream_t stream) {
  launch_sum_tiles<DType::bfloat16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::strip
