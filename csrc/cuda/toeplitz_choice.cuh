// From an access to one of the kernels that were compiled for it.
#pragma once

#include <utility>

#include "../families/toeplitz.h"

namespace dwconv::toeplitz {

// Of planes that are made in shared memory all columns are pairs.
template <typename Kernels>
constexpr bool of_planes = requires { Kernels::takes({}); };

template <typename Kernels, Mode mode, int parts, int unit, int kernel_h>
constexpr typename Kernels::Kernel of_height() {
  if constexpr (!of_planes<Kernels>) {
    constexpr int units = has_pairs(kernel_h, parts) ? unit : 1;
    return Kernels::template of<Fixed<mode, kernel_h, parts, units>>();
  } else if constexpr (Kernels::takes({mode, kernel_h, parts, unit})) {
    return Kernels::template of<Fixed<mode, kernel_h, parts, unit>>();
  } else {
    return nullptr;
  }
}

template <typename Kernels, Mode mode, int parts, int unit, int... height>
typename Kernels::Kernel choose_height(int kernel_h, std::integer_sequence<int, height...>) {
  constexpr
      typename Kernels::Kernel table[] = {of_height<Kernels, mode, parts, unit, height + 1>()...};
  return table[kernel_h - 1];
}

template <typename Kernels, Mode mode, int parts>
typename Kernels::Kernel choose_unit(const Access& a) {
  constexpr auto heights = std::make_integer_sequence<int, kMaxKernelH>{};
  if constexpr (of_planes<Kernels>) {
    return choose_height<Kernels, mode, parts, 2>(a.kernel_h, heights);
  } else {
    return a.unit == 2 ? choose_height<Kernels, mode, parts, 2>(a.kernel_h, heights)
                       : choose_height<Kernels, mode, parts, 1>(a.kernel_h, heights);
  }
}

// `Kernels` names them: template <typename A> static constexpr Kernel of(). Only those of the modes
// are compiled.
template <typename Kernels, Mode... modes>
typename Kernels::Kernel choose(const Access& a) {
  typename Kernels::Kernel found = nullptr;
  const auto consider = [&]<Mode mode>() {
    if (a.mode != mode) return;
    if constexpr (mode == Mode::dense) {
      if (a.parts == 1) {
        found = choose_unit<Kernels, mode, 1>(a);
        return;
      }
    }
    found = choose_unit<Kernels, mode, kMaxParts>(a);
  };
  (consider.template operator()<modes>(), ...);
  return found;
}

}  // namespace dwconv::toeplitz
