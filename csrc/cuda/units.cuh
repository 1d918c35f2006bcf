// How a launch's units of work are dealt out: equal runs of neighbours, one for each block.
#pragma once

#include <cstdint>

namespace dwconv {

__host__ __device__ inline std::int64_t run_begin(std::int64_t units, std::int64_t block,
                                                  std::int64_t blocks) {
  return units * block / blocks;
}

// A unit of work: a group of channels, an image (or a block of them), a band of rows. Bands come
// first, then images, so that a block keeps its channels for many units.
struct Unit {
  int group, image, band;

  __device__ static Unit at(std::int64_t index, int images, int bands) {
    const std::int64_t rest = index / bands;
    return {static_cast<int>(rest / images), static_cast<int>(rest % images),
            static_cast<int>(index % bands)};
  }
  __device__ void advance(int images, int bands) {
    if (++band < bands) return;
    band = 0;
    if (++image < images) return;
    image = 0;
    ++group;
  }
};

}  // namespace dwconv
