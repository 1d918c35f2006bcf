// Neighbouring channels of one element of a channels_last image, which a thread has side by side.
#pragma once

#include "memory.cuh"
#include "scalar.cuh"

namespace dwconv {

// As they lie in memory, aligned to their size together, and widened.
template <typename S, int channels>
struct Vector {
  using Type = typename S::Type;
  using Word = typename Word<channels * sizeof(Type)>::Type;
  union Parts {
    Word word;
    Type elements[channels];
    __device__ Parts() {}
  };

  __device__ static Word load(const Type* from) { return *reinterpret_cast<const Word*>(from); }
  __device__ static void widen(float* values, Word word) {
    Parts parts;
    parts.word = word;
#pragma unroll
    for (int v = 0; v < channels; ++v)
      values[v] = S::widen(parts.elements[v]);
  }
  // From an address of shared memory.
  __device__ static void load_shared(float* values, std::uint32_t at) {
    widen(values, load(static_cast<const Type*>(__cvta_shared_to_generic(at))));
  }
  __device__ static void store(Type* to, const float* values) {
    Parts parts;
#pragma unroll
    for (int v = 0; v < channels; ++v)
      parts.elements[v] = S::round(values[v]);
    *reinterpret_cast<Word*>(to) = parts.word;
  }
};

}  // namespace dwconv
