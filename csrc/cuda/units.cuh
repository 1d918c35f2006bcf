// How a launch's units of work are dealt out: equal runs of neighbours, one for each block.
#pragma once

#include <cstdint>

#include "divide.cuh"

namespace dwconv {

__host__ __device__ inline std::int64_t run_begin(std::int64_t units, std::int64_t block,
                                                  std::int64_t blocks) {
  return units * block / blocks;
}

// A unit of work: a group of channels, an image (or a block of them), a band of rows. Bands come
// first, then images, so that a block keeps its channels for many units.
struct Unit {
  int group, image, band;

  __device__ void advance(int images, int bands) {
    if (++band < bands) return;
    band = 0;
    if (++image < images) return;
    image = 0;
    ++group;
  }
};

// Rows of an image: [first, last), first <= last.
struct RowRange {
  int first;
  int last;
  __device__ int count() const { return last - first; }
  __device__ bool holds(int row) const {
    return static_cast<unsigned>(row - first) < static_cast<unsigned>(last - first);
  }
};

// The runs of a launch, with the divisions made ready by the host: before its first load a block
// would wait a microsecond for them.
class Dealer {
 public:
  // With whole groups all units of a group are in one run.
  Dealer(std::int64_t units, std::int64_t blocks, int images, int bands, bool whole_groups)
      : piece_(whole_groups ? static_cast<std::int64_t>(images) * bands : 1),
        pieces_(units / piece_),
        blocks_(blocks),
        images_(images),
        bands_(bands) {}

  __device__ std::int64_t begin(std::int64_t block) const {
    return blocks_.quotient(pieces_ * block) * piece_;
  }
  __device__ Unit unit(std::int64_t index) const {
    const std::int64_t rest = bands_.quotient(index);
    const std::int64_t group = images_.quotient(rest);
    return {static_cast<int>(group), static_cast<int>(rest - group * images_.value()),
            static_cast<int>(index - rest * bands_.value())};
  }

 private:
  std::int64_t piece_, pieces_;
  Divisor blocks_, images_, bands_;
};

}  // namespace dwconv
