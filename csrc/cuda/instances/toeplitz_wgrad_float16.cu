#include "../toeplitz_wgrad.cuh"

namespace dwconv::toeplitz {

template <>
void launch<Pass::backward_weight, DType::float16, Layout::nchw>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_sum_units<DType::float16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::toeplitz
