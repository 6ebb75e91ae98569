// y = x Wᵀ + b for one to eight rows of x, in any weight format: one pass over W, limited by memory bandwidth.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "panels.h"
#include "parallel.h"
#include "tables.h"
#include "vectors.h"

namespace {

constexpr int64_t CACHED_BYTES = 15 * 1024;  // of x: half of a first-level cache
constexpr int64_t MAX_ROWS = 8;              // beyond that matrix products for many rows are faster
constexpr int UNROLL = 2;                    // independent sums of a product, so that none waits for the previous operation

// A partial sum of the dot product of two rows.
template <typename T>
struct Sum {
  Vec low{0.0f}, high{0.0f};

  void add(const T* a, const T* b) { add(load(a), load(b)); }
  void add(const T* a, const T* b, int64_t count) { add(load(a, count), load(b, count)); }
  void add(Pair a, Pair b) {
    low = at::vec::fmadd(a.low, b.low, low);
    high = at::vec::fmadd(a.high, b.high, high);
  }
  void add(Sum other) { low = low + other.low, high = high + other.high; }

  template <int M>
  static void totals(const Sum (&sums)[M][UNROLL], float (&out)[M]) {
    for (int m = 0; m < M; m++) {
      Sum total = sums[m][0];
      for (int i = 1; i < UNROLL; i++) total.add(sums[m][i]);
      out[m] = sum(total.low + total.high);
    }
  }
};

// Rows of x that are multiplied with each load of a row of the weight.
template <typename T>
constexpr int64_t ROWS_PER_LOAD = ROW_BLOCK;

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
// 32 products per instruction, added in pairs. Unlike elsewhere, numbers below 2^-126 count as zero.
template <>
struct Sum<BFloat16> {
  __m512 pairs = _mm512_setzero_ps();

  void add(const BFloat16* a, const BFloat16* b) { add(_mm512_loadu_si512(a), _mm512_loadu_si512(b)); }
  void add(const BFloat16* a, const BFloat16* b, int64_t count) {
    const __mmask32 mask = (1u << count) - 1;
    add(_mm512_maskz_loadu_epi16(mask, a), _mm512_maskz_loadu_epi16(mask, b));
  }
  void add(__m512i a, __m512i b) { pairs = _mm512_dpbf16_ps(pairs, (__m512bh)a, (__m512bh)b); }

  // Four at a time: adding up a register costs as much as a dozen products.
  template <int M>
  static void totals(const Sum (&sums)[M][UNROLL], float (&out)[M]) {
    for (int first = 0; first < M; first += 4) {
      Vec block[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
      for (int m = first; m < std::min(M, first + 4); m++) {
        block[m - first] = sums[m][0].pairs;
        for (int i = 1; i < UNROLL; i++) block[m - first] = block[m - first] + Vec(sums[m][i].pairs);
      }
      if (first + 4 <= M) {
        four_sums(block, out + first);
      } else {
        float four[4];
        four_sums(block, four);
        std::copy_n(four, M - first, out + first);
      }
    }
  }
};

template <>
constexpr int64_t ROWS_PER_LOAD<BFloat16> = MAX_ROWS;
#endif

// Dot products of R rows of the weight with M rows of x, of length k. The order of the sums depends only on k, so a
// result has the same bits whatever the other rows and the number of threads.
template <int R, int M, typename T>
inline void products(const T* weight, const T* x, int64_t x_stride, int64_t k, float (&out)[R][M]) {
  Sum<T> sums[R][M][UNROLL];
  int64_t column = 0;
  for (; column + UNROLL * PAIR <= k; column += UNROLL * PAIR)
    for (int i = 0; i < UNROLL; i++)
      for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m][i].add(weight + r * k + column + i * PAIR, x + m * x_stride + column + i * PAIR);
  for (; column < k; column += PAIR)
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) {
        const T *w = weight + r * k + column, *part = x + m * x_stride + column;
        if (column + PAIR <= k) sums[r][m][0].add(w, part);
        else sums[r][m][0].add(w, part, k - column);
      }
  for (int r = 0; r < R; r++) Sum<T>::totals(sums[r], out[r]);
}

// A weight [n, k], dense or in panels, and a bias [n] or null. A norm has a weight [n] and k = 0.
template <typename T>
struct Matrix {
  const T *weight = nullptr, *bias = nullptr;
  int64_t n = 0, k = 0;
  Panels panels{};
};

using Optionals = c10::List<std::optional<at::Tensor>>;

// The data of a contiguous tensor, with `count` numbers unless that is 0; null if there is no tensor.
template <typename T>
const T* pointer(const std::optional<at::Tensor>& x, int64_t count = 0) {
  TORCH_CHECK(!x || (x->is_contiguous() && (count == 0 || x->numel() == count)), "a weight must be contiguous with the expected size, not ", x->sizes());
  return x ? x->const_data_ptr<T>() : nullptr;
}

template <typename T>
Matrix<T> matrix(const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias) {
  if (scales) {
    const Panels quantized = panels(weight, *scales);
    return {nullptr, pointer<T>(bias, quantized.n), quantized.n, quantized.k, quantized};
  }
  return {pointer<T>(weight), pointer<T>(bias, weight.size(0)), weight.size(0), weight.dim() == 2 ? weight.size(1) : 0};
}

template <typename T>
struct Product {
  const T *weight, *bias, *x;
  T* y;
  int64_t rows, n, k, x_stride;

  // Multiply R rows of the weight with M rows of x.
  template <int R, int M>
  void part(int64_t row, int64_t first) const {
    float out[R][M];
    products<R, M>(weight + row * k, x + first * x_stride, x_stride, k, out);
    for (int r = 0; r < R && bias != nullptr; r++)
      for (int m = 0; m < M; m++) out[r][m] += static_cast<float>(bias[row + r]);
    T rounded[R][M];
    at::vec::convert(&out[0][0], &rounded[0][0], R * M);
    for (int m = 0; m < M; m++)
      for (int r = 0; r < R; r++) y[(first + m) * n + row + r] = rounded[r][m];
  }

  // One row of the weight at a time is one stream, which the hardware prefetches. If x is long or has many rows, several
  // rows of the weight share each load of x.
  void run() const {
    const int64_t bytes = k * static_cast<int64_t>(sizeof(T));
    if (rows <= ROWS_PER_LOAD<T> && rows * bytes <= CACHED_BYTES) return with_row_count<ROWS_PER_LOAD<T>>(rows, [&](auto count) { multiply_rows<1, decltype(count)::value>(); });
    if (rows <= 2) return with_row_count<2>(rows, [&](auto count) { multiply_rows<8, decltype(count)::value>(); });
    if (rows <= ROW_BLOCK) return with_row_count(rows, [&](auto count) { multiply_rows<4, decltype(count)::value>(); });
    with_row_count<MAX_ROWS - ROW_BLOCK>(rows - ROW_BLOCK, [&](auto count) { multiply_rows<4, ROW_BLOCK, decltype(count)::value>(); });
  }

  // Prefetch the next rows of the weight: with many products per load the hardware does not prefetch far enough.
  void prefetch(int64_t row) const {
    const char* start = reinterpret_cast<const char*>(weight + row * k);
    for (int64_t line = 0; line < k * static_cast<int64_t>(sizeof(T)); line += 64) __builtin_prefetch(start + line);
  }

  // Multiply all rows of the weight, R at a time, with M rows of x and then with N more.
  template <int R, int M, int N = 0>
  void multiply_rows() const {
    parallel_rows(n, k * static_cast<int64_t>(sizeof(T)), R, [&](int64_t row, int64_t end) {
      for (; row + R <= end; row += R) {
        if constexpr (M > ROW_BLOCK) prefetch(row + R);
        part<R, M>(row, 0);
        if constexpr (N > 0) part<R, N>(row, M);
      }
      for (; row < end; row++) {
        part<1, M>(row, 0);
        if constexpr (N > 0) part<1, N>(row, M);
      }
    });
  }
};

// x [rows, k], with rows `x_stride` apart -> y [rows, n].
template <typename T>
void multiply(const Matrix<T>& w, const T* x, int64_t rows, int64_t x_stride, T* y) {
  if (w.weight != nullptr) {
    return Product<T>{w.weight, w.bias, x, y, rows, w.n, w.k, x_stride}.run();
  }
  const auto write = [&](int64_t m, int64_t row, float number) {
    y[m * w.n + row] = static_cast<T>(w.bias ? number + static_cast<float>(w.bias[row]) : number);
  };
  const auto run = [&](const auto& quantized_x) { multiply_panels(w.panels, w.panels, quantized_x, rows, write); };
  if (w.panels.table != nullptr) multiply_panels(w.panels, Tables(w.panels), QuantizedX8<32>(x, x_stride, rows, w.k), rows, write);
  else if (w.panels.bits == 8) run(QuantizedX16(x, x_stride, rows, w.k));
  else if (w.panels.group == 16) run(QuantizedX8<16>(x, x_stride, rows, w.k));
  else run(QuantizedX8<32>(x, x_stride, rows, w.k));
}

template <typename T>
std::vector<T> product(const Matrix<T>& w, const T* x, int64_t rows, int64_t x_stride) {
  std::vector<T> y(rows * w.n);
  multiply(w, x, rows, x_stride, y.data());
  return y;
}

// x [M, in], weight [out, in] of x's dtype or in panels with scales, bias [out] -> [M, out]. Sums are float32, rounded
// once.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && 1 <= x.size(0) && x.size(0) <= MAX_ROWS, "linear: 1 to ", MAX_ROWS, " rows, not ", x.sizes());
  const at::Tensor input = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor y;
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Matrix<T> w = matrix<T>(weight, scales, bias);
    TORCH_CHECK(x.size(1) == w.k, "linear: ", x.sizes(), " by [", w.n, ", ", w.k, "]");
    y = at::empty({x.size(0), w.n}, x.options());
    multiply(w, input.const_data_ptr<T>(), x.size(0), input.stride(0), y.mutable_data_ptr<T>());
  });
  return y;
}

}  // namespace
