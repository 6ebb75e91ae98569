// Splitting work among threads, and rows into blocks.
#pragma once

#include <ATen/Parallel.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "pool.h"

namespace {

constexpr int64_t ROW_BLOCK = 8;          // rows of x whose sums stay in registers, in every weight format
constexpr int64_t THREAD_BYTES = 1 << 16;  // bytes of work that are worth another thread
constexpr int64_t CHUNK_BYTES = 1 << 15;   // bytes taken at a time: a long stream for the prefetcher, a short wait at the end

// Call f with the number of rows as a compile-time constant.
template <int MAX = ROW_BLOCK, typename F>
inline void with_row_count(int64_t rows, F f) {
  if constexpr (MAX > 1) {
    if (rows < MAX) return with_row_count<MAX - 1>(rows, f);
  }
  f(std::integral_constant<int, MAX>());
}

// Call f(first, count) for blocks of up to MAX rows, with the count as a compile-time constant.
template <int MAX = ROW_BLOCK, typename F>
inline void for_row_blocks(int64_t rows, F f) {
  for (int64_t first = 0; first < rows; first += MAX) with_row_count<MAX>(rows - first, [&](auto count) { f(first, count); });
}

// Call f(begin, end) for ranges that cover `count` rows of `bytes` each, in multiples of `multiple` rows, from several
// threads. A range is one contiguous stream.
template <typename F>
void parallel_rows(int64_t count, int64_t bytes, int64_t multiple, const F& f) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count * bytes / THREAD_BYTES);
  const int64_t grain = (CHUNK_BYTES / std::max<int64_t>(bytes, 1) / multiple + 1) * multiple;
  Pool::get().run(threads, count, grain, f);
}

// Call f(begin, end) for ranges that cover `count` tasks, each of which is worth a thread.
template <typename F>
void parallel_tasks(int64_t count, const F& f) {
  Pool::get().run(std::min<int64_t>(at::get_num_threads(), count), count, 1, f);
}

// Set the number of PyTorch's threads for this thread alone. -> the number before
int64_t set_threads(int64_t count) {
  const int64_t before = at::get_num_threads();
#if defined(_OPENMP)
  omp_set_num_threads(static_cast<int>(count));
#endif
  return before;
}

}  // namespace
