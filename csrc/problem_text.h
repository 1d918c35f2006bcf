// Problems in words. Apart from problem.h, which every CUDA file has: nvcc takes a second for the
// standard headers of strings, each time.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "problem.h"

namespace dwconv {

// Names in the order of the enumerators, for printing and for Python.
inline constexpr std::array<std::string_view, 3> kPassNames{"forward", "backward_input",
                                                            "backward_weight"};
inline constexpr std::array<std::string_view, 4> kDTypeNames{"float32", "float16", "bfloat16",
                                                             "float64"};
inline constexpr std::array<std::string_view, 2> kLayoutNames{"nchw", "nhwc"};

constexpr std::string_view name_of(Pass pass) { return kPassNames[static_cast<size_t>(pass)]; }
constexpr std::string_view name_of(DType dtype) { return kDTypeNames[static_cast<size_t>(dtype)]; }
constexpr std::string_view name_of(Layout layout) {
  return kLayoutNames[static_cast<size_t>(layout)];
}

// What is wrong with a problem, as a sentence; empty when it is well formed.
std::string describe_fault(const Problem& problem);

std::string to_string(const Problem& problem);

}  // namespace dwconv
