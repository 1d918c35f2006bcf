// torch tensors -> Problem: every check that keeps a kernel from reading or writing astray. The
// Python layer raises the friendly ValueError or TypeError before; these guard direct calls of
// torch.ops.dwconv.*, and throw std::runtime_error.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "problem_text.h"

namespace dwconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using List = std::vector<int64_t>;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Double:
      return DType::float64;
    default:
      STD_TORCH_CHECK(false, "dwconv: tensors must be float64, float32, float16 or bfloat16");
  }
}

// The memory format that torch sees in the strides of a 4-D tensor: channels_last when the strides
// ascend in the order C, W, H, N. Mirrored by _ops.py for fake tensors.
inline Layout layout_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  STD_TORCH_CHECK(sizes.size() == 4, "dwconv: a tensor must have 4 dimensions, has ", sizes.size());
  if (strides[1] == 0) return Layout::nchw;
  int64_t least = 0;
  for (const int dim : {1, 3, 2, 0}) {
    if (sizes[dim] == 0 || strides[dim] < least) return Layout::nchw;
    // (N, 1, 1, 1) reads the same in both formats: contiguous.
    if (dim == 0 && least == strides[1]) return Layout::nchw;
    least = strides[dim] * std::max<int64_t>(sizes[dim], 1);
  }
  return Layout::nhwc;
}

inline MemoryFormat memory_format_of(Layout layout) {
  return layout == Layout::nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// The strides that torch gives a new tensor of these sizes; channels_last has four.
template <typename SizeArray>
std::array<int64_t, 4> dense_strides(const SizeArray& sizes, Layout layout) {
  std::array<int64_t, 4> strides{};
  int64_t next = 1;
  if (layout == Layout::nhwc) {
    for (const int dim : {1, 3, 2, 0}) {
      strides[dim] = next;
      next *= sizes[dim];
    }
  } else {
    for (size_t dim = sizes.size(); dim-- > 0;) {
      strides[dim] = next;
      next *= std::max<int64_t>(sizes[dim], 1);
    }
  }
  return strides;
}

// Of up to four dimensions.
inline bool is_dense(const Tensor& tensor, Layout layout) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const auto dense = dense_strides(sizes, layout);
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] != 1 && strides[dim] != dense[dim]) return false;
  }
  return true;
}

// The tensor itself where it is dense in the layout and begins at a multiple of 16 bytes, as
// kernels want it; else a copy that does, as all that torch allocates. Looked up here: asking torch
// for a contiguous tensor costs a microsecond of host time even where nothing is copied.
inline Tensor dense(const Tensor& tensor, Layout layout) {
  const Tensor result = is_dense(tensor, layout)
                            ? tensor
                            : torch::stable::contiguous(tensor, memory_format_of(layout));
  const bool aligned = reinterpret_cast<std::uintptr_t>(result.const_data_ptr()) % 16 == 0;
  return aligned ? result : torch::stable::clone(result);
}

// Not initialised, on the device of `like` and, if nothing else is said, of its dtype. Not by
// torch::stable::empty, which takes longer.
template <size_t dims>
Tensor empty(const std::array<int64_t, dims>& sizes, Layout layout, const Tensor& like,
             ScalarType dtype) {
  const auto strides = dense_strides(sizes, layout);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(dims, sizes.data(), strides.data(), static_cast<int32_t>(dtype),
                               aoti_torch_device_type_cuda(), like.get_device_index(), &handle);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "dwconv: no memory for a tensor");
  return Tensor(handle);
}
template <size_t dims>
Tensor empty(const std::array<int64_t, dims>& sizes, Layout layout, const Tensor& like) {
  return empty(sizes, layout, like, like.scalar_type());
}

using Size = std::array<int64_t, 4>;

// `of`: an array of torch's, or a list that a call has given.
template <typename SizeArray>
Size size_of(const SizeArray& of, const char* name) {
  STD_TORCH_CHECK(of.size() == 4, "dwconv: ", name, " must have 4 dimensions, has ", of.size());
  return {of[0], of[1], of[2], of[3]};
}

// What a call says of the convolution beside its tensors.
struct Geometry {
  std::array<int64_t, 2> stride;    // h, w
  std::array<int64_t, 4> padding;   // top, bottom, left, right
  std::array<int64_t, 2> dilation;  // h, w
};

inline Geometry geometry_of(const List& stride, const List& padding, const List& dilation) {
  STD_TORCH_CHECK(stride.size() == 2, "dwconv: stride must have 2 numbers");
  STD_TORCH_CHECK(padding.size() == 4, "dwconv: padding must have 4 numbers");
  STD_TORCH_CHECK(dilation.size() == 2, "dwconv: dilation must have 2 numbers");
  return {.stride = {stride[0], stride[1]},
          .padding = {padding[0], padding[1], padding[2], padding[3]},
          .dilation = {dilation[0], dilation[1]}};
}

// The same from one number, which torch hands over in a tenth of the time of three lists: eight
// bytes, stride's first. Packed by _ops.py.
inline Geometry geometry_of(int64_t packed) {
  const auto number = [&](int i) { return packed >> 8 * i & 0xff; };
  return {.stride = {number(0), number(1)},
          .padding = {number(2), number(3), number(4), number(5)},
          .dilation = {number(6), number(7)}};
}

inline Problem make_problem(Pass pass, const Tensor& like, Layout layout, const Size& input,
                            const Size& weight, const Geometry& geometry) {
  STD_TORCH_CHECK(weight[1] == 1, "dwconv: the weight must have the shape (M*C, 1, kh, kw)");
  STD_TORCH_CHECK(input[1] > 0 && weight[0] > 0 && weight[0] % input[1] == 0,
                  "dwconv: the weight's ", weight[0],
                  " filters must be a positive multiple of the input's ", input[1], " channels");
  const auto axis = [&](int i) {
    return Axis{.input = input[2 + i],
                .kernel = weight[2 + i],
                .stride = geometry.stride[i],
                .pad_before = geometry.padding[2 * i],
                .pad_after = geometry.padding[2 * i + 1],
                .dilation = geometry.dilation[i]};
  };
  Problem problem{.pass = pass,
                  .dtype = dtype_of(like),
                  .layout = layout,
                  .bias = false,
                  .batch = input[0],
                  .channels = input[1],
                  .multiplier = weight[0] / input[1],
                  .h = axis(0),
                  .w = axis(1)};
  const std::string fault = describe_fault(problem);
  STD_TORCH_CHECK(fault.empty(), "dwconv: ", fault);
  return problem;
}

inline Size output_size(const Problem& problem) {
  return {problem.batch, problem.filters(), problem.h.output(), problem.w.output()};
}

// `tensor` must have the size, and the dtype and device of `like`.
template <size_t dims>
void check_matches(const Tensor& tensor, const char* name, const std::array<int64_t, dims>& size,
                   const Tensor& like) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(sizes.size() == dims && std::equal(size.begin(), size.end(), sizes.begin()),
                  "dwconv: ", name, " has the wrong shape");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "dwconv: ", name,
                  " has another dtype than the first tensor");
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(),
                  "dwconv: ", name, " is on another device than the first tensor");
}

}  // namespace dwconv
