// The threads of the kernels.
//
// A region is a loop that the calling thread shares with workers. The caller never waits for a worker that has not
// begun: it takes ranges of the loop itself until none is left, and then waits only for ranges in progress. So a worker
// that the system has put aside, on a machine with other work, costs its share of the speed and little more. OpenMP's
// threads must all arrive at the end of every region, and a token has more than a hundred.
//
// What remains is a worker that is put aside within a range. If that happens, the machine is crowded, and for a moment
// all threads take short rests between ranges: a thread that rests is put aside then, and may return at once when it is
// needed, while one that spins uses up its turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr microseconds SPIN{1000}, SHORT_SPIN{30};     // how long a worker waits for the next region before it sleeps
constexpr microseconds LATE{100}, CROWDED_LATE{20};   // how long the caller waits before it takes a worker for put aside
constexpr microseconds OFTEN{50'000};                 // twice within this time: the machine is crowded …
constexpr microseconds CROWDED{100'000};              // … for this time
constexpr microseconds TURN{200}, REST{20}, NAP{50};  // then a worker rests after each turn, and a caller that waits naps

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  // The pool of this process. It is never destroyed, since its threads may outlive everything else.
  static Pool& get() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // Call f(first, last) for ranges of up to `grain` that cover 0 to `count`, from at most `threads` threads. Each thread
  // begins with a share of its own, one contiguous stream of memory, and then helps the others.
  template <typename F>
  void run(int64_t threads, int64_t count, int64_t grain, const F& f) {
    if (threads < 2 || count <= grain || in_use.test_and_set(std::memory_order_acquire)) return f(0, count);
    threads = std::min(threads, MAX_THREADS);
    for (; started < threads - 1; started++) std::thread([this, index = started + 1] { serve(index); }).detach();
    function.store([](const void* closure, int64_t first, int64_t last) { (*static_cast<const F*>(closure))(first, last); }, std::memory_order_relaxed);
    context.store(&f, std::memory_order_relaxed);
    size.store(count, std::memory_order_relaxed);
    longest.store(grain, std::memory_order_relaxed);
    sharers.store(threads, std::memory_order_relaxed);
    share(threads, count);
    in_use.clear(std::memory_order_release);
  }

  // Set how long workers wait for a region: `soon` in a step of few tokens, whose regions follow each other. In a chunk
  // PyTorch's threads compute the products between them, and a worker that spins would take a processor from them.
  void expect(bool soon) { is_soon.store(soon, std::memory_order_relaxed); }

 private:
  using Function = void (*)(const void* closure, int64_t first, int64_t last);

  static constexpr int64_t MAX_THREADS = 64;
  static constexpr int REMAINING_BITS = 40;
  static constexpr uint64_t REMAINING = (uint64_t(1) << REMAINING_BITS) - 1;

  std::atomic_flag in_use = ATOMIC_FLAG_INIT;  // by a region: others, of other callers or inside it, are not shared
  int64_t started = 0;

  struct alignas(64) Share {  // one cache line each
    std::atomic<uint64_t> state{0};  // number of the region, and how much of this share remains to be taken
  };

  // The region. It changes only while nothing remains, so whoever takes a range with a compare-and-swap on a share's
  // state has read the region to which the range belongs.
  std::atomic<Function> function{nullptr};
  std::atomic<const void*> context{nullptr};
  std::atomic<int64_t> size{0}, longest{1}, sharers{1};
  Share shares[MAX_THREADS];
  uint64_t number = 0;
  alignas(64) std::atomic<int64_t> done{0};    // how much of it is done
  alignas(64) std::atomic<uint32_t> wake_ups{0};
  std::atomic<int32_t> sleeping{0};
  std::atomic<bool> crowded{false}, is_soon{true};
  Clock::time_point last_late{}, crowded_until{};

  // The caller's part in a region.
  void share(int64_t threads, int64_t count) {
    if (crowded.load(std::memory_order_relaxed) && Clock::now() > crowded_until) crowded.store(false, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    number++;
    for (int64_t i = threads - 1; i >= 0; i--)
      shares[i].state.store(number << REMAINING_BITS | static_cast<uint64_t>(count * (i + 1) / threads - count * i / threads));
    if (sleeping.load() > 0) {
      wake_ups.fetch_add(1);
      wake_ups.notify_all();
    }
    while (take_range(0)) {}
    if (done.load(std::memory_order_acquire) == count) return;
    const Clock::time_point late = Clock::now() + (crowded.load(std::memory_order_relaxed) ? CROWDED_LATE : LATE);
    bool is_late = false;
    while (done.load(std::memory_order_acquire) != count) {
      pause();
      if (Clock::now() < late) continue;
      is_late = true;
      std::this_thread::sleep_for(NAP);
    }
    if (!is_late) return;
    const Clock::time_point now = Clock::now();
    if (now - last_late < OFTEN) {
      crowded.store(true, std::memory_order_relaxed);
      crowded_until = now + CROWDED;
    }
    last_late = now;
  }

  // Compute a range of the current region, of the thread's own share if it has one; return false if none is left.
  bool take_range(int64_t index) {
    const int64_t threads = sharers.load(std::memory_order_relaxed);
    for (int64_t i = 0; index < threads && i < threads; i++) {
      const int64_t owner = (index + i) % threads;
      uint64_t old = shares[owner].state.load(std::memory_order_acquire);
      while (const int64_t remaining = old & REMAINING) {
        const int64_t length = std::min(remaining, longest.load(std::memory_order_relaxed));
        const int64_t first = size.load(std::memory_order_relaxed) * (owner + 1) / sharers.load(std::memory_order_relaxed) - remaining;
        const Function call = function.load(std::memory_order_relaxed);
        const void* closure = context.load(std::memory_order_relaxed);
        if (!shares[owner].state.compare_exchange_weak(old, old - length, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
        call(closure, first, first + length);
        done.fetch_add(length, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  bool has_work(int64_t index) const {
    const int64_t threads = sharers.load(std::memory_order_relaxed);
    for (int64_t i = 0; index < threads && i < threads; i++)
      if (shares[(index + i) % threads].state.load() & REMAINING) return true;
    return false;
  }

  // The life of a worker. The clock is not read while there is work, unless the machine is crowded.
  void serve(int64_t index) {
    Clock::time_point turn = Clock::now();
    for (;;) {
      Clock::time_point asleep_at{};
      for (int spins = 0;; spins++) {
        const bool is_crowded = crowded.load(std::memory_order_relaxed);
        if (take_range(index)) {
          spins = -1;
          if (is_crowded && Clock::now() - turn > TURN) {
            std::this_thread::sleep_for(REST);
            turn = Clock::now();
          }
          continue;
        }
        pause();
        if (spins % 32 != 0) continue;
        const Clock::time_point now = Clock::now();
        if (spins == 0) asleep_at = now + (is_soon.load(std::memory_order_relaxed) && !is_crowded ? SPIN : SHORT_SPIN);
        if (now >= asleep_at) break;
      }
      sleeping.fetch_add(1);
      const uint32_t seen = wake_ups.load();
      if (!has_work(index)) wake_ups.wait(seen);
      sleeping.fetch_sub(1);
    }
  }
};

}  // namespace
