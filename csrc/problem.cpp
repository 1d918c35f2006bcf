#include <algorithm>
#include <sstream>
#include <utility>

#include "problem_text.h"

namespace dwconv {
namespace {

// Kernels count taps and steps in 32 bits, and elements in 64.
constexpr std::int64_t kMaxCount = (std::int64_t{1} << 31) - 1;

std::string describe_axis_fault(const Axis& axis, char name) {
  std::ostringstream out;
  if (axis.input < 1) {
    out << "input size along " << name << " must be positive, got " << axis.input;
  } else if (axis.kernel < 1) {
    out << "kernel size along " << name << " must be positive, got " << axis.kernel;
  } else if (axis.stride < 1) {
    out << "stride along " << name << " must be positive, got " << axis.stride;
  } else if (axis.dilation < 1) {
    out << "dilation along " << name << " must be positive, got " << axis.dilation;
  } else if (axis.pad_before < 0 || axis.pad_after < 0) {
    out << "padding along " << name << " must not be negative, got " << axis.pad_before << " and "
        << axis.pad_after;
  } else if (std::max({axis.kernel, axis.stride, axis.dilation}) > kMaxCount) {
    out << "kernel size, stride and dilation along " << name << " must be below 2^31";
  } else if (axis.extent() > axis.padded_input()) {
    out << "the kernel spans " << axis.extent() << " elements along " << name
        << ", more than the padded input of " << axis.padded_input();
  }
  return out.str();
}

void print_axis(std::ostream& out, const Axis& axis) {
  out << axis.input << " k" << axis.kernel << " s" << axis.stride << " p" << axis.pad_before << "+"
      << axis.pad_after << " d" << axis.dilation;
}

}  // namespace

std::string describe_fault(const Problem& problem) {
  if (problem.batch < 0) return "batch must not be negative";
  if (problem.channels < 1) return "channels must be positive";
  if (problem.multiplier < 1) return "the channel multiplier must be positive";
  for (const auto& [axis, name] : {std::pair{problem.h, 'H'}, std::pair{problem.w, 'W'}}) {
    const std::string fault = describe_axis_fault(axis, name);
    if (!fault.empty()) return fault;
  }
  if (problem.taps() > kMaxCount) {
    return "the filter has " + std::to_string(problem.taps()) +
           " taps, and must have fewer than 2^31";
  }
  return {};
}

std::string to_string(const Problem& problem) {
  std::ostringstream out;
  out << name_of(problem.pass) << " " << name_of(problem.dtype) << " " << name_of(problem.layout)
      << " N" << problem.batch << " C" << problem.channels << " M" << problem.multiplier << " H";
  print_axis(out, problem.h);
  out << " W";
  print_axis(out, problem.w);
  if (problem.bias) out << " bias";
  return out.str();
}

}  // namespace dwconv
