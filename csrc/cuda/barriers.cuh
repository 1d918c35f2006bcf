// Barriers in shared memory that count arrivals, of threads and of copies that they have started.
// From sm_80 on; what the copy engine of sm_90 needs beside them is in bulk.cuh.
#pragma once

#include <cstdint>

namespace dwconv {

#if __CUDA_ARCH__ >= 800
__device__ inline void init_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void arrive_at(std::uint32_t barrier) {
  asm volatile(
      "{\n"
      " .reg .b64 state;\n"
      " mbarrier.arrive.shared.b64 state, [%0];\n"
      "}\n" ::"r"(barrier)
      : "memory");
}
// Once, when the copies (cp.async) that this thread has started are there.
__device__ inline void arrive_with_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void wait_barrier(std::uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      " .reg .pred done;\n"
      "again:\n"
#if __CUDA_ARCH__ >= 900
      " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
#else
      " mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
      " @!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Whether there is nothing to wait for. Asked early, the answer takes no time.
__device__ inline bool test_barrier(std::uint32_t barrier, int parity) {
  int done;
  asm volatile(
      "{\n"
      " .reg .pred done;\n"
      " mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
      " selp.s32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
#endif

}  // namespace dwconv
