// How a lane of the outer family gets its part of a product's operands: elements of one place in
// 16 images, of which it has four.
#pragma once

#include "../families/outer.h"
#include "memory.cuh"
#include "units.cuh"

namespace dwconv::outer {

// Where a lane reads of its images, in shared memory: of images 2t, 2t + 1, 2t + 8 and 2t + 9 of
// lanes with t = lane % 4.
struct LaneImages {
  std::uint32_t at[4];

  // Of runs `step` bytes apart from `stage` on, which begin where they do in global memory within
  // 16 bytes: that of image i at `global`, of which the last bits are enough, and i times `pitch`;
  // so many bytes on.
  __device__ LaneImages(const char* stage, int step, unsigned global, unsigned pitch, int offset) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int image = 2 * t + i % 2 + 8 * (i / 2);
      at[i] = shared_address(stage) + image * step + ((global + image * pitch) & 15) + offset;
    }
  }
  // The same address for all of them.
  __device__ explicit LaneImages(std::uint32_t address) : at{address, address, address, address} {}

  __device__ void advance(int bytes) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      at[i] += bytes;
  }
};

// An element of a lane's images and the next one, on their way: as words where they are aligned.
template <bool even>
struct TwoColumns {
  std::uint32_t words[even ? 4 : 8];

  // Those `offset` bytes on.
  template <int offset>
  __device__ void load(const LaneImages& images) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (even) {
        words[i] = load_shared_word(images.at[i] + offset);
      } else {
        words[i] = load_shared_element(images.at[i] + offset);
        words[4 + i] = load_shared_element(images.at[i] + offset + 2);
      }
    }
  }
  // Of the first two images, or of the others.
  __device__ std::uint32_t first(int i) const {
    return __byte_perm(words[2 * i], words[2 * i + 1], 0x5410);
  }
  __device__ std::uint32_t second(int i) const {
    if constexpr (even) return __byte_perm(words[2 * i], words[2 * i + 1], 0x7632);
    return __byte_perm(words[(4 + 2 * i) % (even ? 4 : 8)], words[(5 + 2 * i) % (even ? 4 : 8)],
                       0x5410);
  }
};

// So many of them, 16 columns from one to the next.
template <bool even, int count>
struct Columns {
  TwoColumns<even> two[count];

  __device__ void load(const LaneImages& images) {
    two[0].template load<0>(images);
    if constexpr (count == 2) two[1].template load<32>(images);
  }
  // As rows of a product, or as columns of two.
  __device__ void rows(int i, std::uint32_t (&words)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      words[k] = k % 2 == 0 ? two[i].first(k / 2) : two[i].second(k / 2);
  }
  __device__ void columns(int i, std::uint32_t (&words)[2], std::uint32_t (&next)[2]) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      words[k] = two[i].first(k);
      next[k] = two[i].second(k);
    }
  }
};

}  // namespace dwconv::outer
