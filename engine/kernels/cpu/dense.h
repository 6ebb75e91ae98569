// y = x Wᵀ + b for a few rows of x and a dense W, plus an adapter's branch: one pass over W, at the speed of the memory for
// up to some 8 rows.
//
// Products and sums are float32, also for bfloat16: on Intel's processors that is faster than their bfloat16 dot product
// once a loaded weight serves several rows, and as fast with one row, which waits for the memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "panels.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t MAX_ROWS = 32;  // of x; beyond that matrix products for many rows are faster
constexpr int STREAMS = 4;  // rows of the weight in a tile, each a stream that the hardware prefetches
#if defined(CPU_CAPABILITY_AVX2)
constexpr int X_ROWS = 2;  // rows of x in a tile, at most, so that its sums stay in the 16 registers
#else
constexpr int X_ROWS = 6;  // 32 registers
#endif

// x [rows, k] as float32, in the order in which `load_split` returns numbers, each row followed by zeros.
struct FloatRows {
  int64_t stride;
  std::vector<float> numbers;

  template <typename T>
  FloatRows(const T* x, int64_t x_stride, int64_t rows, int64_t k) : stride((k + PAIR - 1) / PAIR * PAIR), numbers(rows * stride) {
    for (int64_t row = 0; row < rows; row++)
      for_pairs(k, [&](int64_t i, int64_t count) { store(numbers.data() + row * stride + i, load_split(x + row * x_stride + i, count)); });
  }
};

// Dot products of R rows of the weight [.., k] with M rows of x. The order of the sums depends only on k, so a result has
// the same bits whatever the other rows and the number of threads. `ahead`: bytes to prefetch ahead.
template <int R, int M, typename T>
__attribute__((noinline)) void tile(const T* weight, int64_t k, const float* x, int64_t x_stride, int64_t ahead, float* out) {
  Vec sums[M * R];
  std::fill_n(sums, M * R, Vec(0.0f));
  const auto add = [&](int64_t column, const Pair (&w)[R]) __attribute__((always_inline)) {
    for (int m = 0; m < M; m++) {
      const Vec low = Vec::loadu(x + m * x_stride + column);
      for (int r = 0; r < R; r++) sums[m * R + r] = at::vec::fmadd(w[r].low, low, sums[m * R + r]);
    }
    for (int m = 0; m < M; m++) {
      const Vec high = Vec::loadu(x + m * x_stride + column + LANES);
      for (int r = 0; r < R; r++) sums[m * R + r] = at::vec::fmadd(w[r].high, high, sums[m * R + r]);
    }
  };
  int64_t column = 0;
  for (; column + PAIR <= k; column += PAIR) {
    Pair w[R];
    for (int r = 0; r < R; r++) {
      const T* part = weight + r * k + column;
      w[r] = load_split(part);
      for (int64_t line = 0; line < PAIR * static_cast<int64_t>(sizeof(T)); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(part) + ahead + line, 0, M == 1 ? 3 : 2);
    }
    add(column, w);
  }
  if (column < k) {
    Pair w[R];
    for (int r = 0; r < R; r++) w[r] = load_split(weight + r * k + column, k - column);
    add(column, w);
  }
  all_sums<M * R>(sums, out);
}

template <typename T>
struct Branch;  // adapter.h

template <typename T, typename Y = T>
struct Product {
  const T *weight, *bias;
  Y* y;
  int64_t rows, n, k;
  const FloatRows& x;
  const Branch<T>* branch = nullptr;  // null: none

  void run() const {
    parallel_rows(n, k * static_cast<int64_t>(sizeof(T)), STREAMS, [&](int64_t begin, int64_t end) {
      if (branch == nullptr) return multiply_range(begin, end);
      branch->compute_hidden();
      for (int64_t last; begin < end; begin = last) {
        last = std::min(end, begin + PANEL);
        float added[MAX_ROWS * PANEL] = {};
        for (int64_t m = 0; m < rows; m++) branch->add_to(added + m * PANEL, m, begin, last - begin);
        multiply_range(begin, last, added);
      }
    });
  }

  // Rows `row` to `end` of the weight. `added`: the branch's numbers for them [rows, 32], or null.
  void multiply_range(int64_t row, int64_t end, const float* added = nullptr) const {
    const int64_t first = row, bytes = k * static_cast<int64_t>(sizeof(T)), ahead = (AHEAD / (STREAMS * bytes) + 1) * STREAMS * bytes;
    const auto of = [&] { return added == nullptr ? nullptr : added + row - first; };
    for (; row + STREAMS <= end; row += STREAMS) multiply<STREAMS>(row, ahead, of());
    for (; row < end; row++) multiply<1>(row, ahead, of());
  }

  // R rows of the weight with all rows of x, in tiles of nearly the same size.
  template <int R>
  void multiply(int64_t row, int64_t ahead, const float* added) const {
    for (int64_t first = 0, count, tiles = (rows + X_ROWS - 1) / X_ROWS; tiles > 0; first += count, tiles--) {
      count = (rows - first + tiles - 1) / tiles;
      with_row_count<X_ROWS>(count, [&](auto rows_of_x) {
        constexpr int M = decltype(rows_of_x)::value;
        float out[M * R];
        tile<R, M>(weight + row * k, k, x.numbers.data() + first * x.stride, x.stride, ahead, out);
        for (int m = 0; m < M && bias != nullptr; m++)
          for (int r = 0; r < R; r++) out[m * R + r] += static_cast<float>(bias[row + r]);
        for (int m = 0; m < M && added != nullptr; m++)
          for (int r = 0; r < R; r++) out[m * R + r] += added[(first + m) * PANEL + r];
        Y rounded[M * R];
        at::vec::convert(out, rounded, M * R);
        for (int m = 0; m < M; m++) std::copy_n(rounded + m * R, R, y + (first + m) * n + row);
      });
    }
  }
};

}  // namespace
