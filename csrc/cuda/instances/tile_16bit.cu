#include "../tile.cuh"
#include "../tile_phases.cuh"

namespace dwconv::tile {

template <>
void launch<Pass::forward, DType::float16, Layout::nchw>(const Problem& problem, const Plan& plan,
                                                         const Tensors& tensors,
                                                         cudaStream_t stream) {
  launch_convolve<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::float16, Layout::nchw>(const Problem& problem,
                                                                const Plan& plan,
                                                                const Tensors& tensors,
                                                                cudaStream_t stream) {
  launch_backward_input<DType::float16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::forward, DType::bfloat16, Layout::nchw>(const Problem& problem, const Plan& plan,
                                                          const Tensors& tensors,
                                                          cudaStream_t stream) {
  launch_convolve<DType::bfloat16>(problem, plan, tensors, stream);
}

template <>
void launch<Pass::backward_input, DType::bfloat16, Layout::nchw>(const Problem& problem,
                                                                 const Plan& plan,
                                                                 const Tensors& tensors,
                                                                 cudaStream_t stream) {
  launch_backward_input<DType::bfloat16>(problem, plan, tensors, stream);
}

}  // namespace dwconv::tile
