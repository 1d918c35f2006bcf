#include "../batched_wgrad.cuh"

namespace dwconv::batched {

template <>
void launch<Pass::backward_weight, DType::float32, Layout::nchw>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_sum_images(problem, plan, tensors, stream);
}

}  // namespace dwconv::batched
