// y = x Wᵀ + b for many rows of x, plus an adapter's branch: the products of prompts, with W in any format. Products and
// sums are float32, rounded once.
//
// A tile is the sums of W_TILE rows of W with X_TILE rows of x, which stay in registers while a block of columns is read.
// Columns are added one after the other, so the bits of a row of y do not depend on the other rows of x: a prompt gives the
// same numbers however it is cut into chunks, and whatever is computed beside it.
//
// x is transposed first, [columns, X_TILE] for each tile, and a block of W is converted or dequantized to float32, in cache, so
// that a step of the inner loop is a load of X_TILE numbers, and one broadcast for each row of W.
//
// With AMX bfloat16 numbers are multiplied as tiles.h says: x is packed, a dense W is read as it lies in memory, and other
// formats are dequantized to bfloat16; only int8 keeps its integers, and sums are scaled at the end.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <memory>
#include <optional>
#include <vector>

#include "linear.h"
#include "parallel.h"
#include "quantize.h"
#include "vectors.h"

namespace {

template <typename T, typename Y>
class Gemm {
  static constexpr bool TILES = HAS_TILES<T>;  // of AMX
  static constexpr int64_t X_TILE = TILES ? 2 * TILE_ROWS : std::max<int64_t>(16, 2 * LANES);
  static constexpr int VECTORS = X_TILE / LANES;
#if defined(CPU_CAPABILITY_AVX512)
  static constexpr int W_TILE = TILES ? 2 * TILE_ROWS : 14;  // with the sums, VECTORS of x and a broadcast, 31 of 32 registers
#else
  static constexpr int W_TILE = 6;  // 15 of AVX2's 16, 29 of NEON's 32
#endif
  static constexpr int64_t COLUMNS = TILES ? 512 : 256;                   // of a block; whole blocks of every format
  static constexpr int64_t W_BLOCK = TILES ? 256 : W_TILE == 14 ? 112 : 96;  // rows of W that are read at once, at most
  static constexpr int64_t X_BLOCK = 256;                             // rows of x that they serve
  static constexpr int64_t WHOLE = TILES ? TILE_COLUMNS : 16;             // columns are padded with zeros to a multiple
  static_assert(W_BLOCK % W_TILE == 0 && W_BLOCK % 16 == 0 && X_BLOCK % X_TILE == 0);
  using Number = std::conditional_t<TILES, BFloat16, float>;  // of a block of W, and of x
  struct Memory {
    alignas(64) Number block[W_BLOCK * COLUMNS];
    alignas(64) float sums[W_BLOCK * X_BLOCK], turned[W_BLOCK * X_TILE];
  };

 public:
  // x [rows, k], with rows `x_stride` apart -> y [rows, n]
  Gemm(const Matrix<T>& weight, const T* x, int64_t x_stride, Y* y, int64_t rows, const float* hidden = nullptr)
      : weight(weight), hidden(hidden), y(y), rows(rows), n(weight.n), k(weight.k), wide(round_up(k, WHOLE)), tiles((rows + X_TILE - 1) / X_TILE), height(block_height(n)), row_scales(TILES && weight.panels.bits == 8 ? static_cast<const float*>(weight.panels.scales) : nullptr) {
    transposed = at::empty({tiles * wide * X_TILE}, TILES ? at::kBFloat16 : at::kFloat);
    Number* const to = transposed.mutable_data_ptr<Number>();
    const int64_t pieces = (wide + COLUMNS - 1) / COLUMNS;
    parallel_tasks(tiles * pieces, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) transpose_tile(x, x_stride, i / pieces, i % pieces * COLUMNS, to);
    });
  }

  void run() const {
    const int64_t blocks = (n + height - 1) / height;
    int64_t size = X_BLOCK;
    const auto x_blocks = [&] { return (rows + size - 1) / size; };
    while (size > X_TILE && blocks * x_blocks() < (TILES ? 2 : 4) * at::get_num_threads()) size /= 2;  // work for all threads
    parallel_tasks(blocks * x_blocks(), [&](int64_t first, int64_t last) {
      static thread_local std::unique_ptr<Memory> memory;
      if (memory == nullptr) memory = std::make_unique<Memory>();
      [[maybe_unused]] const std::conditional_t<TILES, TileRegisters, int> registers{};
      for (int64_t i = first; i < last; i++) multiply(i / x_blocks() * height, i % x_blocks() * size, size, *memory);
    });
  }

 private:
  const Matrix<T>& weight;
  const float* hidden;  // of the adapter: A x [rows, rank], or null
  Y* y;
  int64_t rows, n, k, wide, tiles, height;  // height: rows of W that are read at once
  const float* row_scales;  // of sums of integers, or null
  at::Tensor transposed;  // x as [tiles, wide, X_TILE]

  // Several blocks for each thread, if there are as many rows.
  static int64_t block_height(int64_t n) {
    if constexpr (!TILES) return W_BLOCK;
    return std::clamp<int64_t>(n / (2 * at::get_num_threads()) / W_TILE * W_TILE, W_TILE, W_BLOCK);
  }

  void transpose_tile(const T* x, int64_t x_stride, int64_t tile, int64_t column, Number* to) const {
    const int64_t count = std::min(COLUMNS, wide - column), used = std::min(count, k - column), first = tile * X_TILE;
    to += first * wide;
    if constexpr (TILES) {
      for (int64_t row = 0; row < X_TILE; row += TILE_ROWS)
        pack_tile(x + (first + row) * x_stride + column, x_stride, std::clamp<int64_t>(rows - first - row, 0, TILE_ROWS), TILE_ROWS, used, to + row * wide + column * TILE_ROWS);
      return;
    }
    alignas(64) float numbers[X_TILE * COLUMNS];
    for (int64_t row = 0; row < X_TILE; row++) {
      float* const line = numbers + row * COLUMNS;
      if (first + row < rows) copy_to_float(x + (first + row) * x_stride + column, used, line);
      std::fill(line + (first + row < rows ? used : 0), line + count, 0.0f);
    }
    transpose(numbers, COLUMNS, X_TILE, count, reinterpret_cast<float*>(to) + column * X_TILE, X_TILE);
  }

  // Rows of W from `row` on with up to `size` rows of x from `x_row` on.
  void multiply(int64_t row, int64_t x_row, int64_t size, Memory& memory) const {
    const int64_t outputs = std::min(height, n - row), count = std::min(size, rows - x_row), of_block = (count + X_TILE - 1) / X_TILE;
    if constexpr (!TILES) std::fill_n(memory.sums, of_block * W_BLOCK * X_TILE, 0.0f);
    for (int64_t column = 0; column < k; column += COLUMNS) {
      const int64_t columns = std::min(COLUMNS, k - column);
      const Block block = read(row, outputs, column, columns, memory.block);
      const auto add = [&](int64_t tile, int64_t i) {
        const Number* const numbers = transposed.const_data_ptr<Number>() + (x_row + tile * X_TILE) * wide + column * (TILES ? TILE_ROWS : X_TILE);
        float* const sums = memory.sums + (tile * W_BLOCK + i) * X_TILE;
        with_row_count<VECTORS>((count - tile * X_TILE + LANES - 1) / LANES, [&](auto vectors) {  // fewer in the last tile
          if constexpr (TILES) add_tiles<2, decltype(vectors)::value>(block.numbers + i * block.stride, 2 * block.stride, numbers, TILE_ROWS, wide * TILE_ROWS, (columns + TILE_COLUMNS - 1) / TILE_COLUMNS, sums, X_TILE, column == 0);
          else add_products<decltype(vectors)::value>(block.numbers + i * block.stride, numbers, columns, sums);
        });
      };
      const auto finish = [&](int64_t tile, int64_t i, int64_t size) {
        if (column + COLUMNS < k) return;
        transpose(memory.sums + (tile * W_BLOCK + i) * X_TILE, X_TILE, round_up(size, 16), X_TILE, memory.turned, W_BLOCK);
        for (int64_t j = 0; j < std::min(X_TILE, count - tile * X_TILE); j++) write(memory.turned + j * W_BLOCK, x_row + tile * X_TILE + j, row + i, size);
      };
      if constexpr (TILES)  // a tile of W stays in the first cache, and tiles of x are one stream
        for (int64_t i = 0; i < outputs; i += W_TILE)
          for (int64_t tile = 0; tile < of_block; tile++) add(tile, i), finish(tile, i, std::min<int64_t>(W_TILE, outputs - i));
      else
        for (int64_t tile = 0; tile < of_block; tile++) {
          prefetch(row, outputs, column + COLUMNS, tile, of_block);
          for (int64_t i = 0; i < outputs; i += W_TILE) add(tile, i);
          finish(tile, 0, outputs);
        }
    }
  }

  struct Block {
    const Number* numbers;
    int64_t stride;  // from one row to the next
  };

  // A block of W: itself, or converted into `to`, with zeros after the last row and column.
  Block read(int64_t row, int64_t outputs, int64_t column, int64_t columns, Number* to) const {
    const T* const dense = weight.weight + row * k + column;
    if constexpr (TILES)
      if (weight.weight != nullptr && outputs % W_TILE == 0 && columns % WHOLE == 0) return {dense, k};
    std::fill(to + outputs * COLUMNS, to + round_up(outputs, W_TILE) * COLUMNS, Number(0.0f));
    for (int64_t i = 0; i < outputs && columns % WHOLE != 0; i++) std::fill(to + i * COLUMNS + columns, to + i * COLUMNS + round_up(columns, WHOLE), Number(0.0f));
    for (int64_t i = 0; i < outputs; i += TILE_ROWS) {
      const int64_t count = std::min(TILE_ROWS, outputs - i);
      Number* const lines = to + i * COLUMNS;
      if (weight.records.bytes != nullptr) {
        if constexpr (TILES) {
          alignas(64) float wide_lines[TILE_ROWS * COLUMNS];
          weight.records.dequantize(row + i, count, column, column + columns, wide_lines, COLUMNS);
          for (int64_t j = 0; j < count; j++) at::vec::convert(wide_lines + j * COLUMNS, lines + j * COLUMNS, columns);
        } else {
          weight.records.dequantize(row + i, count, column, column + columns, lines, COLUMNS);
        }
      } else if (weight.panels.codes != nullptr) {
        dequantize_rows(weight.panels, row + i, count, column, column + columns, lines, COLUMNS, row_scales == nullptr);
      } else {
        for (int64_t j = 0; j < count; j++) {
          if constexpr (TILES) std::copy_n(dense + (i + j) * k, columns, lines + j * COLUMNS);
          else copy_to_float(dense + (i + j) * k, columns, lines + j * COLUMNS);
        }
      }
    }
    return {to, COLUMNS};
  }

  // A share of the lines of the next block of a dense W.
  void prefetch(int64_t row, int64_t outputs, int64_t column, int64_t share, int64_t shares) const {
    if (column >= k || weight.weight == nullptr) return;
    const int64_t bytes = std::min(COLUMNS, k - column) * sizeof(T);
    for (int64_t i = outputs * share / shares; i < outputs * (share + 1) / shares; i++)
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(weight.weight + (row + i) * k + column) + line, 0, 2);
  }

  // sums [W_TILE, X_TILE] += W [W_TILE, columns] times x [columns, X_TILE], of which V vectors are in use
  template <int V>
  static __attribute__((noinline)) void add_products(const float* w, const float* x, int64_t columns, float* sums) {
    Vec total[W_TILE][V];
    for (int i = 0; i < W_TILE; i++)
      for (int v = 0; v < V; v++) total[i][v] = Vec::loadu(sums + i * X_TILE + v * LANES);
    for (int64_t column = 0; column < columns; column++) {
      Vec numbers[V];
      for (int v = 0; v < V; v++) numbers[v] = Vec::loadu(x + column * X_TILE + v * LANES);
      for (int i = 0; i < W_TILE; i++) {
        const Vec factor(w[i * COLUMNS + column]);
        for (int v = 0; v < V; v++) total[i][v] = at::vec::fmadd(factor, numbers[v], total[i][v]);
      }
    }
    for (int i = 0; i < W_TILE; i++)
      for (int v = 0; v < V; v++) total[i][v].store(sums + i * X_TILE + v * LANES);
  }

  // The sums of rows of W from `row` on with row `m` of x.
  void write(float* numbers, int64_t m, int64_t row, int64_t count) const {
    if (row_scales != nullptr)
      for_pairs(count, [&](int64_t i, int64_t size) {
        const Pair sum = load(numbers + i, size), scales = load(row_scales + row + i, size);
        store(numbers + i, {sum.low * scales.low, sum.high * scales.high}, size);
      });
    if (hidden != nullptr) weight.adapter->add_to(numbers, hidden + m * weight.adapter->rank, row, count);
    for_pairs(count, [&](int64_t i, int64_t size) {
      Pair sum = load(numbers + i, size);
      if (weight.bias != nullptr) {
        const Pair more = load(weight.bias + row + i, size);
        sum = {sum.low + more.low, sum.high + more.high};
      }
      store(y + m * n + row + i, sum, size);
    });
  }
};

// x times a weight in any format, plus the bias and the adapter's branch, for any number of rows. A row's bits depend on it
// alone.
at::Tensor gemm(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                const std::optional<at::Tensor>& adapter, const std::optional<at::Tensor>& adapter_sizes) {
  Pool::get().expect(true);
  return with_matrix(x, weight, scales, bias, adapter, adapter_sizes, [&]<typename T>(const Matrix<T>& w, const T* numbers, int64_t stride, T* y) {
    const int64_t rows = x.size(0);
    if (w.adapter == nullptr) return Gemm(w, numbers, stride, y, rows).run();
    const Matrix<T> a{w.adapter->a, nullptr, w.adapter->rank, w.k};
    std::vector<float> hidden(rows * a.n);
    Gemm(a, numbers, stride, hidden.data(), rows).run();
    Gemm(w, numbers, stride, y, rows, hidden.data()).run();
  });
}

}  // namespace
