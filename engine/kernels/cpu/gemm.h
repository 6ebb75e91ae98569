// y = x Wᵀ + b for many rows of x, plus an adapter's branch: the products of prompts, with W in any format. Products and
// sums are float32, rounded once.
//
// A tile is the sums of W_TILE rows of W with X_TILE rows of x, which stay in registers while a block of columns is read.
// Columns are added one after the other, so the bits of a row of y do not depend on the other rows of x: a prompt gives the
// same numbers however it is cut into chunks, and whatever is computed beside it.
//
// x is transposed first, [columns, X_TILE] for each tile, and a block of W is converted or dequantized to float32, in cache, so
// that a step of the inner loop is a load of X_TILE numbers, and one broadcast for each row of W.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "linear.h"
#include "parallel.h"
#include "quantize.h"
#include "vectors.h"

namespace {

template <typename T, typename Y>
class Gemm {
  static constexpr int64_t X_TILE = std::max<int64_t>(16, 2 * LANES);
  static constexpr int VECTORS = X_TILE / LANES;
#if defined(CPU_CAPABILITY_AVX512)
  static constexpr int W_TILE = 14;  // with the sums, VECTORS of x and a broadcast, 31 of 32 registers
#else
  static constexpr int W_TILE = 6;  // 15 of AVX2's 16, 29 of NEON's 32
#endif
  static constexpr int64_t COLUMNS = 256;                      // of a block; whole blocks of every format
  static constexpr int64_t W_BLOCK = W_TILE == 14 ? 112 : 96;  // rows of W that are converted at once
  static constexpr int64_t X_BLOCK = 256;                      // rows of x that they serve
  static_assert(W_BLOCK % W_TILE == 0 && W_BLOCK % 16 == 0 && X_BLOCK % X_TILE == 0);

 public:
  // x [rows, k], with rows `x_stride` apart -> y [rows, n]
  Gemm(const Matrix<T>& weight, const T* x, int64_t x_stride, Y* y, int64_t rows, const float* hidden = nullptr)
      : weight(weight), hidden(hidden), y(y), rows(rows), n(weight.n), k(weight.k), wide(round_up(k, 16)), tiles((rows + X_TILE - 1) / X_TILE) {
    transposed = at::empty({tiles * wide * X_TILE}, at::kFloat);
    float* const to = transposed.mutable_data_ptr<float>();
    const int64_t pieces = (wide + COLUMNS - 1) / COLUMNS;
    parallel_tasks(tiles * pieces, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) transpose_tile(x, x_stride, i / pieces, i % pieces * COLUMNS, to);
    });
  }

  void run() const {
    const int64_t blocks = (n + W_BLOCK - 1) / W_BLOCK;
    int64_t size = X_BLOCK;
    const auto x_blocks = [&] { return (rows + size - 1) / size; };
    while (size > X_TILE && blocks * x_blocks() < 4 * at::get_num_threads()) size /= 2;  // work for all threads
    parallel_tasks(blocks * x_blocks(), [&](int64_t first, int64_t last) {
      static thread_local std::vector<float> memory;
      for (int64_t i = first; i < last; i++) multiply(i / x_blocks() * W_BLOCK, i % x_blocks() * size, size, memory);
    });
  }

 private:
  const Matrix<T>& weight;
  const float* hidden;  // of the adapter: A x [rows, rank], or null
  Y* y;
  int64_t rows, n, k, wide, tiles;
  at::Tensor transposed;  // x as [tiles, wide, X_TILE]

  void transpose_tile(const T* x, int64_t x_stride, int64_t tile, int64_t column, float* to) const {
    const int64_t count = std::min(COLUMNS, wide - column), used = std::min(count, k - column);
    alignas(64) float numbers[X_TILE * COLUMNS];
    for (int64_t row = 0; row < X_TILE; row++) {
      float* const line = numbers + row * COLUMNS;
      if (tile * X_TILE + row < rows) copy_to_float(x + (tile * X_TILE + row) * x_stride + column, used, line);
      std::fill(line + (tile * X_TILE + row < rows ? used : 0), line + count, 0.0f);
    }
    transpose(numbers, COLUMNS, X_TILE, count, to + (tile * wide + column) * X_TILE, X_TILE);
  }

  // Rows of W from `row` on with up to `size` rows of x from `x_row` on.
  void multiply(int64_t row, int64_t x_row, int64_t size, std::vector<float>& memory) const {
    const int64_t outputs = std::min(W_BLOCK, n - row), count = std::min(size, rows - x_row), of_block = (count + X_TILE - 1) / X_TILE;
    memory.resize(W_BLOCK * COLUMNS + W_BLOCK * X_BLOCK + W_BLOCK * X_TILE);
    float *const block = memory.data(), *const sums = block + W_BLOCK * COLUMNS, *const turned = sums + W_BLOCK * X_BLOCK;
    std::fill_n(block + outputs * COLUMNS, (W_BLOCK - outputs) * COLUMNS, 0.0f);  // rows after the last
    std::fill_n(sums, of_block * W_BLOCK * X_TILE, 0.0f);
    for (int64_t column = 0; column < k; column += COLUMNS) {
      const int64_t columns = std::min(COLUMNS, k - column);
      read(row, outputs, column, columns, block);
      for (int64_t tile = 0; tile < of_block; tile++) {
        prefetch(row, outputs, column + COLUMNS, tile, of_block);
        const float* const numbers = transposed.const_data_ptr<float>() + ((x_row / X_TILE + tile) * wide + column) * X_TILE;
        with_row_count<VECTORS>((count - tile * X_TILE + LANES - 1) / LANES, [&](auto vectors) {  // fewer in the last tile
          for (int64_t i = 0; i < outputs; i += W_TILE) add_products<decltype(vectors)::value>(block + i * COLUMNS, numbers, columns, sums + (tile * W_BLOCK + i) * X_TILE);
        });
      }
    }
    for (int64_t tile = 0; tile < of_block; tile++) {
      transpose(sums + tile * W_BLOCK * X_TILE, X_TILE, W_BLOCK, X_TILE, turned, W_BLOCK);
      for (int64_t i = 0; i < std::min(X_TILE, count - tile * X_TILE); i++) write(turned + i * W_BLOCK, x_row + tile * X_TILE + i, row, outputs);
    }
  }

  // A block of W in float32.
  void read(int64_t row, int64_t outputs, int64_t column, int64_t columns, float* block) const {
    if (weight.records.bytes != nullptr) return weight.records.dequantize(row, outputs, column, column + columns, block, COLUMNS);
    if (weight.panels.codes != nullptr)
      for (int64_t i = 0; i < outputs; i += 16) dequantize_rows(weight.panels, row + i, std::min<int64_t>(16, outputs - i), column, column + columns, block + i * COLUMNS, COLUMNS);
    else
      for (int64_t i = 0; i < outputs; i++) copy_to_float(weight.weight + (row + i) * k + column, columns, block + i * COLUMNS);
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
