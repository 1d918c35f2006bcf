#include "../columns_wgrad.cuh"

namespace dwconv::columns {

template Launcher launch<Pass::backward_weight, DType::float16, Layout::nchw>;
template Launcher launch<Pass::backward_weight, DType::bfloat16, Layout::nchw>;

}  // namespace dwconv::columns
