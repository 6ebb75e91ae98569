// y = x Wᵀ + b for a few rows of x and a dense W, plus an adapter's branch: one pass over W, at the speed of the memory for
// up to some 8 rows, or 32 with AMX.
//
// Without AMX products and sums are float32, also for bfloat16: on Intel's processors that is faster than their bfloat16 dot product
// once a loaded weight serves several rows, and as fast with one row, which waits for the memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "panels.h"
#include "parallel.h"
#include "tiles.h"
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

#if defined(BARELOOP_AMX)
// x [rows, k] packed for AMX: one tile of up to 16 rows, or two of the same height.
struct PackedRows {
  int64_t tiles, of_tile, stride;  // rows of a tile, and numbers from one to the next
  const BFloat16* numbers;
  std::unique_ptr<BFloat16[]> memory;

  PackedRows(const BFloat16* x, int64_t x_stride, int64_t rows, int64_t k)
      : tiles((rows + TILE_ROWS - 1) / TILE_ROWS), of_tile((rows + tiles - 1) / tiles), stride(round_up(k, TILE_COLUMNS) * of_tile), numbers(x) {
    if (rows == 1 && k % TILE_COLUMNS == 0) return;  // one row is packed as it is
    memory = std::make_unique_for_overwrite<BFloat16[]>(tiles * stride + TILE_COLUMNS);
    for (int64_t tile = 0; tile < tiles; tile++)
      pack_tile(x + tile * of_tile * x_stride, x_stride, std::min(of_tile, rows - tile * of_tile), of_tile, k, memory.get() + tile * stride);
    numbers = memory.get();
  }
};
#else
struct PackedRows;
#endif

template <typename T>
struct Branch;  // adapter.h

template <typename T, typename Y = T>
struct Product {
  const T *weight, *bias;
  Y* y;
  int64_t rows, n, k;
  const FloatRows& x;
  const Branch<T>* branch = nullptr;     // null: none
  const PackedRows* packed = nullptr;  // x once more, if AMX is to be used

  void run() const {
    const int64_t step = packed == nullptr ? 1 : PANEL, bytes = k * static_cast<int64_t>(sizeof(T));  // of a range
    parallel_rows((n + step - 1) / step, step * bytes, packed == nullptr ? STREAMS : 1, [&](int64_t begin, int64_t end) {
      begin *= step, end = std::min(n, end * step);
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
    if constexpr (HAS_TILES<T>)
      if (packed != nullptr) return this->multiply_tiles(row, end, added);
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

#if defined(BARELOOP_AMX)
  static constexpr int64_t FETCHED = 1024;  // columns up to which the next rows are fetched: the hardware follows long rows better itself

  // Rows `row` to `end` of the weight, a range that begins at a multiple of 32, with all rows of x.
  void multiply_tiles(int64_t row, int64_t end, const float* added) const {
    const TileRegisters registers(packed->of_tile);
    const int64_t wide = round_up(k, TILE_COLUMNS);
    std::vector<T> edge;
    for (; row < end; row += PANEL) {
      const int64_t count = std::min(PANEL, end - row);
      const T* lines = weight + row * k;
      if (count < PANEL || wide != k) {  // a copy that is followed by zeros
        edge.assign(PANEL * wide, T(0.0f));
        for (int64_t i = 0; i < count; i++) std::copy_n(lines + i * k, k, edge.data() + i * wide);
        lines = edge.data();
      }
      alignas(64) float sums[PANEL * PANEL], turned[PANEL * PANEL];
      const T* const next = k <= FETCHED && row + 2 * PANEL <= n ? weight + (row + PANEL) * k : nullptr;
      with_row_count<2>(packed->tiles, [&](auto tiles) {
        add_tiles<2, decltype(tiles)::value>(lines, 2 * wide, packed->numbers, packed->of_tile, packed->stride, wide / TILE_COLUMNS, sums, PANEL, true, next);
      });
      transpose(sums, PANEL, PANEL, round_up(rows, 16), turned, PANEL);
      for (int64_t m = 0; m < rows; m++) {
        float* const numbers = turned + m * PANEL;
        for (int64_t i = 0; i < count && bias != nullptr; i++) numbers[i] += static_cast<float>(bias[row + i]);
        for (int64_t i = 0; i < count && added != nullptr; i++) numbers[i] += added[m * PANEL + i];
        at::vec::convert(numbers, y + m * n + row, count);
      }
    }
  }
#endif
};

}  // namespace
