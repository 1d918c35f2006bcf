// From a geometry to one of the kernels that were compiled for its filter width and access.
#pragma once

#include <utility>

#include "../families/tile.h"

namespace dwconv::tile {

// `Kernels` names them: template <int kernel_w, typename A> static auto of(const Geometry&).
template <typename Kernels, DType dtype, Mode mode, int... width>
auto choose_narrow(const Geometry& g, std::integer_sequence<int, width...>) {
  decltype(Kernels::template of<1, OneColumn<mode>>(g)) found = nullptr;
  const auto consider = [&]<int kernel_w>() {
    if (g.w.kernel != kernel_w) return;
    if constexpr (has_one_column(dtype, mode, kernel_w))
      found = Kernels::template of<kernel_w, OneColumn<mode>>(g);
    if constexpr (has_sharing_columns(dtype, mode, kernel_w)) {
      if (g.access.columns == kSharingColumns)
        found = Kernels::template of<kernel_w, SharingColumns<mode>>(g);
    }
    if constexpr (has_few_columns(mode, kernel_w)) {
      if (g.access.columns == kFewColumns)
        found = Kernels::template of<kernel_w, FewColumns<mode>>(g);
    }
  };
  (consider.template operator()<width + 1>(), ...);
  return found;
}

template <typename Kernels, int... index>
auto choose_wide(const Geometry& g, std::integer_sequence<int, index...>) {
  decltype(Kernels::template of<1, OneColumn<Mode::dense>>(g)) found = nullptr;
  const auto consider = [&]<int i>() {
    constexpr WideFilter filter = kWideFilters[i];
    if (filter.kernel_w != g.w.kernel || filter.pad != g.w.pad) return;
    found = g.access.unit == 4
                ? Kernels::template of<filter.kernel_w,
                                       Fixed<Mode::dense, 4, filter.pad, kWideColumns>>(g)
                : Kernels::template of<filter.kernel_w,
                                       Fixed<Mode::dense, 2, filter.pad, kWideColumns>>(g);
  };
  (consider.template operator()<index>(), ...);
  return found;
}

template <typename Kernels, DType dtype>
auto choose(const Geometry& g) {
  constexpr auto widths = std::make_integer_sequence<int, kMaxKernel>{};
  if (g.access.unit > 1)
    return choose_wide<Kernels>(g, std::make_integer_sequence<int, wide_filters(dtype)>{});
  switch (g.access.mode) {
    case Mode::strided:
      return choose_narrow<Kernels, dtype, Mode::strided>(g, widths);
    case Mode::dilated:
      return choose_narrow<Kernels, dtype, Mode::dilated>(g, widths);
    default:
      return choose_narrow<Kernels, dtype, Mode::dense>(g, widths);
  }
}

}  // namespace dwconv::tile
