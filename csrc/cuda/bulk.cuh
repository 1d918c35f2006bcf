// Contiguous runs of elements on their way between global and shared memory. On sm_90 the copy
// engine moves them and no thread is kept busy; before, all threads of the block copy 16 bytes at a
// time, asynchronously from sm_80 on.
#pragma once

#include "../plan.h"
#include "barriers.cuh"
#include "memory.cuh"

namespace dwconv {

// What becomes of the data that are loaded. After the last use their lines are the first that the
// L2 gives up: what others left there may stay, and need not be written back just now.
enum class Use { any, last };
inline Use use_of(const Plan& plan) { return plan.last_use ? Use::last : Use::any; }

#if __CUDA_ARCH__ >= 900
__device__ inline std::uint64_t last_use_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void expect_bytes(std::uint32_t barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Numbered barriers of the block (0 to 2, beside __syncthreads), for so many threads: some only
// tell that they have come. Numbers that are not known before would take all 16 that a block may
// have.
template <int barrier>
__device__ inline void tell_warps(int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"n"(1 + barrier), "r"(threads) : "memory");
}
template <int barrier>
__device__ inline void wait_for_warps(int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"n"(1 + barrier), "r"(threads) : "memory");
}
__device__ inline void tell_warps(int barrier, int threads) {
  barrier == 0   ? tell_warps<0>(threads)
  : barrier == 1 ? tell_warps<1>(threads)
                 : tell_warps<2>(threads);
}
__device__ inline void wait_for_warps(int barrier, int threads) {
  barrier == 0   ? wait_for_warps<0>(threads)
  : barrier == 1 ? wait_for_warps<1>(threads)
                 : wait_for_warps<2>(threads);
}
__device__ inline void bulk_load(std::uint32_t shared, const void* global, unsigned bytes,
                                 std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void bulk_load(std::uint32_t shared, const void* global, unsigned bytes,
                                 std::uint32_t barrier, Use use) {
  if (use == Use::any) return bulk_load(shared, global, bytes, barrier);
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(last_use_policy())
      : "memory");
}
__device__ inline void bulk_store(void* global, std::uint32_t shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared), "r"(bytes)
               : "memory");
}
#endif

// Elements that follow each other in global memory, and where they go: to the same offset within 16
// bytes.
template <typename Type>
struct Run {
  Type* global;
  char* shared;  // 16-byte aligned
  int count;
};

// The 16 bytes around either end come along.
template <typename Type>
__device__ inline const char* aligned(const Type* from) {
  return reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(from) &
                                       ~std::uintptr_t{15});
}
template <typename Type>
__device__ inline unsigned padded_bytes(const Type* from, int count) {
  const unsigned offset = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(from) & 15);
  return (offset + count * static_cast<unsigned>(sizeof(Type)) + 15) & ~15u;
}

#if __CUDA_ARCH__ >= 900
// One thread starts loading a run. `barrier` is told what to expect. Kernels that never state a use
// have none to look at.
template <typename Type, typename... Uses>
__device__ inline void load_run(const Run<const Type>& run, std::uint32_t barrier, Uses... use) {
  const unsigned bytes = run.count > 0 ? padded_bytes(run.global, run.count) : 0;
  expect_bytes(barrier, bytes);
  if (bytes > 0) bulk_load(shared_address(run.shared), aligned(run.global), bytes, barrier, use...);
}
#endif

// Loads runs into the slots of a ring in shared memory, ahead of their use. All threads of the
// block call everything else, one slot after the other.
class RunLoader {
 public:
  // `barriers` holds one number for each slot, which takes `runs` runs. A barrier of the block must
  // follow.
  __device__ RunLoader(std::uint64_t* barriers, int slots, int runs)
      : barriers_(shared_address(barriers)), slots_(slots), runs_(runs) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      for (int i = 0; i < slots; ++i)
        init_barrier(barriers_ + 8 * i, runs);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#endif
  }

  // Whether this thread has a part in the loads of a slot; others need not call `load`.
  __device__ bool loads() const {
#if __CUDA_ARCH__ >= 900
    return static_cast<int>(threadIdx.x) < runs_;
#else
    return true;
#endif
  }

  // Starts loading run(0), run(1)... into a slot. What used the slot before must be behind a
  // barrier.
  template <typename RunOf>
  __device__ void load(int slot, const RunOf& run) const {
    start(slot, run);
  }
  template <typename RunOf>
  __device__ void load(int slot, Use use, const RunOf& run) const {
    start(slot, run, use);
  }

  // Loads a run that has no slot, at once, and waits for all loads. A barrier must follow.
  template <typename Type>
  __device__ static void load_now(const Run<const Type>& run) {
    copy(run.shared, run.global, run.count);
    commit_copies();
    wait_for_copies(0);
  }

  // In place of a load where none is left, so that the count of loads under way stays right.
  __device__ void skip() const {
#if __CUDA_ARCH__ < 900
    commit_copies();
#endif
  }

  // Waits for the slot's runs, each slot in turn; `behind` loads have been started (or skipped)
  // since. A barrier of the block must follow.
  __device__ void wait(int slot, int behind) {
#if __CUDA_ARCH__ >= 900
    wait_barrier(barriers_ + 8 * slot, parity_);
    if (slot == slots_ - 1) parity_ ^= 1;
#else
    wait_for_copies(behind);
#endif
  }

 private:
  template <typename RunOf, typename... Uses>
  __device__ void start(int slot, const RunOf& run, Uses... use) const {
#if __CUDA_ARCH__ >= 900
    const std::uint32_t barrier = barriers_ + 8 * slot;
    for (int i = threadIdx.x; i < runs_; i += blockDim.x)
      load_run(run(i), barrier, use...);
#else
    for (int i = 0; i < runs_; ++i) {
      const auto one = run(i);
      if (one.count > 0) copy(one.shared, one.global, one.count);
    }
    commit_copies();
#endif
  }

  template <typename Type>
  __device__ static void copy(char* to, const Type* from, int count) {
    const char* source = aligned(from);
    const auto bytes = static_cast<int>(padded_bytes(from, count));
    for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
      copy_or_zero<16>(to + i, source + i, true);
  }

  std::uint32_t barriers_;
  int slots_, runs_;
  int parity_ = 0;
};

#if __CUDA_ARCH__ >= 900
// A run of results leaves, by as many threads as it has elements before or after its whole 16
// bytes: `lane` is which of them a thread is, or more. To be committed.
template <typename Type>
__device__ inline void send_run(const Run<Type>& run, int lane) {
  constexpr int per_vector = 16 / sizeof(Type);
  if (run.count <= 0 || lane >= per_vector) return;
  const int start = misalignment(run.global);
  const Type* shared = reinterpret_cast<const Type*>(run.shared) + start;
  const int head = min((per_vector - start) % per_vector, run.count);
  const int body = (run.count - head) / per_vector * per_vector;
  if (lane == 0 && body > 0)
    bulk_store(run.global + head, shared_address(shared + head), body * sizeof(Type));
  if (lane < head) run.global[lane] = shared[lane];
  const int rest = head + body + lane;
  if (rest < run.count) run.global[rest] = shared[rest];
}
__device__ inline void commit_sent() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
#endif

// Results leave: run(0) to run(runs - 1), elements at the offset within 16 bytes that they have in
// global memory. To be called by the block after `publish` and a barrier.
template <typename Type, typename RunOf>
__device__ inline void send_runs(int runs, const RunOf& run) {
#if __CUDA_ARCH__ >= 900
  constexpr int per_vector = 16 / sizeof(Type);
  for (int i = threadIdx.x / per_vector; i < runs; i += blockDim.x / per_vector)
    send_run(run(i), threadIdx.x % per_vector);
  commit_sent();
#else
  for (int i = 0; i < runs; ++i) {
    const Run<Type> one = run(i);
    store_run(one.global, reinterpret_cast<const Type*>(one.shared) + misalignment(one.global),
              one.count);
  }
#endif
}

// Orders what this thread did to shared memory before what the copy engine does to it, `send_runs`
// for one.
__device__ inline void publish() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Waits until what was sent has been read from shared memory, but for the last `pending` calls of
// send_runs; a barrier must follow.
template <int pending>
__device__ inline void wait_until_sent() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
#endif
}

// Waits until the place of the next results is free, where places, `result_bytes` apart, take
// turns, or where there is one (0); a barrier must follow.
__device__ inline void wait_for_place(int result_bytes) {
  if (result_bytes == 0) {
    wait_until_sent<0>();
  } else {
    wait_until_sent<1>();
  }
}

}  // namespace dwconv
