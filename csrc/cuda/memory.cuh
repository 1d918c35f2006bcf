// Copies between global and shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dwconv {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline std::uint32_t load_shared_word(std::uint32_t at) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}

__device__ inline void load_shared_pair(std::uint32_t (&words)[2], std::uint32_t at) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(at)
               : "memory");
}
__device__ inline void store_shared_pair(std::uint32_t at, std::uint32_t first,
                                         std::uint32_t second) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(first), "r"(second) : "memory");
}
// 16-byte aligned.
__device__ inline void store_shared_quad(std::uint32_t at, const std::uint32_t (&&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

__device__ inline std::uint32_t load_shared_element(std::uint32_t at) {
  std::uint16_t element;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(element) : "r"(at) : "memory");
  return element;
}

template <int bytes>
struct Word;
template <>
struct Word<2> {
  using Type = std::uint16_t;
};
template <>
struct Word<4> {
  using Type = std::uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// Copies `bytes` aligned bytes, or zeros where `inside` is false; nothing is read then. From sm_80
// on the copy is asynchronous (4 bytes and more): see commit_copies.
template <int bytes>
__device__ inline void copy_or_zero(void* shared, const void* global, bool inside) {
  using W = typename Word<bytes>::Type;
#if __CUDA_ARCH__ >= 800
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(inside ? 16 : 0)
                 : "memory");
    return;
  } else if constexpr (bytes >= 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(bytes), "r"(inside ? bytes : 0)
                 : "memory");
    return;
  }
#endif
  W word{};
  if (inside) word = *static_cast<const W*>(global);
  *static_cast<W*>(shared) = word;
}

// The copies that this thread started since the last call become one group.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` groups of this thread, the latest ones, are still under way. 0
// to 2.
__device__ inline void wait_for_copies(int pending) {
#if __CUDA_ARCH__ >= 800
  if (pending == 0) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  } else if (pending == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  }
#endif
}

__device__ inline void zero_shared(void* shared, int bytes) {
  for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16) {
    *reinterpret_cast<uint4*>(static_cast<char*>(shared) + i) = uint4{};
  }
}

// The block copies `count` elements to global memory, from shared memory that lies at the same
// offset within 16 bytes: wide stores but for the ends.
template <typename Type>
__device__ inline void store_run(Type* global, const Type* shared, int count) {
  constexpr int per_vector = 16 / sizeof(Type);
  if (count <= 0) return;
  const int lead = static_cast<int>(-reinterpret_cast<std::uintptr_t>(global) & 15) / sizeof(Type);
  const int head = min(lead, count);
  const int vectors = (count - head) / per_vector;
  const int body = head + vectors * per_vector;
  auto* to = reinterpret_cast<uint4*>(global + head);
  const auto* from = reinterpret_cast<const uint4*>(shared + head);
  for (int i = threadIdx.x; i < vectors; i += blockDim.x)
    to[i] = from[i];
  if (threadIdx.x < head) global[threadIdx.x] = shared[threadIdx.x];
  if (threadIdx.x < count - body) global[body + threadIdx.x] = shared[body + threadIdx.x];
}

// The offset within 16 bytes at which `store_run` wants its shared memory.
template <typename Type>
__device__ inline int misalignment(const Type* global) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(global) & 15) / sizeof(Type);
}

#if __CUDA_ARCH__ >= 900
// A barrier of all threads of a cluster, which see what the others wrote before it.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// What is at the same place in the shared memory of a block of the cluster.
__device__ inline float load_of_block(const float* shared, int block) {
  float value;
  asm volatile(
      "{\n"
      " .reg .b32 there;\n"
      " mapa.shared::cluster.u32 there, %1, %2;\n"
      " ld.shared::cluster.f32 %0, [there];\n"
      "}\n"
      : "=f"(value)
      : "r"(shared_address(shared)), "r"(block)
      : "memory");
  return value;
}
#endif

}  // namespace dwconv
