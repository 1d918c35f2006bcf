#include "../generic.cuh"

namespace dwconv::generic {

template Launcher launch<Pass::forward, DType::float64, Layout::nchw>;
template Launcher launch<Pass::forward, DType::float64, Layout::nhwc>;
template Launcher launch<Pass::backward_input, DType::float64, Layout::nchw>;
template Launcher launch<Pass::backward_input, DType::float64, Layout::nhwc>;
template Launcher launch<Pass::backward_weight, DType::float64, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::float64, Layout::nhwc>;

}  // namespace dwconv::generic
