// Work splitting among torch's threads: each thread starts with a contiguous range, then takes chunks from the others.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t ROW_BLOCK = 4;          // rows of x whose sums stay in registers, in every weight format
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

// Call f(first, count) for blocks of `ROW_BLOCK` rows, with the count as a compile-time constant.
template <typename F>
inline void for_row_blocks(int64_t rows, F f) {
  for (int64_t first = 0; first < rows; first += ROW_BLOCK) with_row_count(rows - first, [&](auto count) { f(first, count); });
}

// Call f(begin, end) for ranges that cover `count` rows of `bytes` each, in multiples of `multiple` rows, from several
// threads. A thread's own range is one contiguous stream.
template <typename F>
void parallel_rows(int64_t count, int64_t bytes, int64_t multiple, F f) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count * bytes / THREAD_BYTES);
  if (threads < 2) return f(0, count);
  struct alignas(64) Range {  // one cache line each
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Range> ranges(threads);
  for (int64_t i = 0; i < threads; i++) ranges[i].next = count * i / threads, ranges[i].end = count * (i + 1) / threads;
  const int64_t chunk = (CHUNK_BYTES / std::max<int64_t>(bytes, 1) / multiple + 1) * multiple;
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; thread++)
      for (int64_t i = 0; i < threads; i++) {
        Range& range = ranges[(thread + i) % threads];
        for (int64_t row; (row = range.next.fetch_add(chunk)) < range.end;) f(row, std::min(row + chunk, range.end));
      }
  });
}

}  // namespace
