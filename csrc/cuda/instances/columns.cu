#include "../columns.cuh"

namespace dwconv::columns {

template Launcher launch<Pass::forward, DType::float16, Layout::nchw>;
template Launcher launch<Pass::forward, DType::bfloat16, Layout::nchw>;
template Launcher launch<Pass::backward_input, DType::float16, Layout::nchw>;
template Launcher launch<Pass::backward_input, DType::bfloat16, Layout::nchw>;

}  // namespace dwconv::columns
