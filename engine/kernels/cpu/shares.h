// Work for torch's threads: each begins with a share of its own, and takes from the others' when it is through.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t SOME_ROWS = 4;    // of x, whose sums stay in registers, whatever the weight's format
constexpr int64_t SHARE = 1 << 16;  // bytes that are worth a thread
constexpr int64_t CHUNK = 1 << 15;  // bytes that are taken at a time: long enough a stream, short enough a wait at the end

// f of the number of rows, as a constant.
template <int MOST = SOME_ROWS, typename F>
inline void by_rows(int64_t rows, F f) {
  if constexpr (MOST > 1) {
    if (rows < MOST) return by_rows<MOST - 1>(rows, f);
  }
  f(std::integral_constant<int, MOST>());
}

// f(first, count) for `SOME_ROWS` rows at a time, the count as a constant.
template <typename F>
inline void by_some_rows(int64_t rows, F f) {
  for (int64_t first = 0; first < rows; first += SOME_ROWS) by_rows(rows - first, [&](auto count) { f(first, count); });
}

// f(begin, end) for all of `count` rows of so many bytes, a multiple of `together` at a time. A share is one stream.
template <typename F>
void by_shares(int64_t count, int64_t bytes, int64_t together, F f) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count * bytes / SHARE);
  if (threads < 2) return f(0, count);
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares(threads);
  for (int64_t i = 0; i < threads; i++) shares[i].next = count * i / threads, shares[i].end = count * (i + 1) / threads;
  const int64_t chunk = (CHUNK / std::max<int64_t>(bytes, 1) / together + 1) * together;
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; thread++)
      for (int64_t i = 0; i < threads; i++) {
        Share& share = shares[(thread + i) % threads];
        for (int64_t row; (row = share.next.fetch_add(chunk)) < share.end;) f(row, std::min(row + chunk, share.end));
      }
  });
}

}  // namespace
