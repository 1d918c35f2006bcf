#include "../pointwise.cuh"

namespace dwconv::pointwise {

template Launcher launch<Pass::forward, DType::float32, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::float32, Layout::nchw>;
template Launcher launch<Pass::forward, DType::float32, Layout::nhwc>;
template Launcher launch<Pass::backward_input, DType::float32, Layout::nhwc>;

}  // namespace dwconv::pointwise
