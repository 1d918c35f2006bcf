#include "../batched.cuh"

namespace dwconv::batched {

template <>
void launch<Pass::forward, DType::float32, Layout::nchw>(const Problem& problem, const Plan& plan,
                                                         const Tensors& tensors,
                                                         cudaStream_t stream) {
  launch_convolve(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::float32, Layout::nchw>(const Problem& problem,
                                                                const Plan& plan,
                                                                const Tensors& tensors,
                                                                cudaStream_t stream) {
  launch_convolve(problem, plan, tensors, stream);
}

}  // namespace dwconv::batched
