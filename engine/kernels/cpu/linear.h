// y = x Wᵀ + b for a few rows of x: one pass over W, at the speed of memory, in whatever format it is.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "panels.h"
#include "shares.h"
#include "vectors.h"

namespace {

constexpr int64_t LONG = 15 * 1024;    // bytes of x: half of a first-level cache
constexpr int64_t MOST_ROWS = 8;      // of more, matrix products for many rows are faster
constexpr int UNROLL = 2;              // sums of a product that go side by side, so that none waits for the last

// A part of the product of two rows.
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
  static void totals(const Sum (&sums)[M][UNROLL], float (&to)[M]) {
    for (int m = 0; m < M; m++) {
      Sum own = sums[m][0];
      for (int i = 1; i < UNROLL; i++) own.add(sums[m][i]);
      to[m] = sum(own.low + own.high);
    }
  }
};

// Rows of x that go with one look at a row of the weight.
template <typename T>
constexpr int64_t AT_ONCE = SOME_ROWS;

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
// 32 products in one instruction, added by pairs; numbers below 2^-126 count as zero, as they do not elsewhere.
template <>
struct Sum<BFloat16> {
  __m512 both = _mm512_setzero_ps();

  void add(const BFloat16* a, const BFloat16* b) { add(_mm512_loadu_si512(a), _mm512_loadu_si512(b)); }
  void add(const BFloat16* a, const BFloat16* b, int64_t count) {
    const __mmask32 mask = (1u << count) - 1;
    add(_mm512_maskz_loadu_epi16(mask, a), _mm512_maskz_loadu_epi16(mask, b));
  }
  void add(__m512i a, __m512i b) { both = _mm512_dpbf16_ps(both, (__m512bh)a, (__m512bh)b); }

  // Four at a time, because adding up a register costs as much as a dozen products.
  template <int M>
  static void totals(const Sum (&sums)[M][UNROLL], float (&to)[M]) {
    for (int first = 0; first < M; first += 4) {
      Vec some[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
      for (int m = first; m < std::min(M, first + 4); m++) {
        some[m - first] = sums[m][0].both;
        for (int i = 1; i < UNROLL; i++) some[m - first] = some[m - first] + Vec(sums[m][i].both);
      }
      if (first + 4 <= M) {
        four_sums(some, to + first);
      } else {
        float four[4];
        four_sums(some, four);
        std::copy_n(four, M - first, to + first);
      }
    }
  }
};

template <>
constexpr int64_t AT_ONCE<BFloat16> = MOST_ROWS;
#endif

// R rows of the weight with M rows of x, k long each. The order of the sums depends on k alone, so that neither the
// rows beside it nor the number of threads change a bit of a result.
template <int R, int M, typename T>
inline void products(const T* weight, const T* x, int64_t x_stride, int64_t k, float (&out)[R][M]) {
  Sum<T> sums[R][M][UNROLL];
  int64_t place = 0;
  for (; place + UNROLL * PAIR <= k; place += UNROLL * PAIR)
    for (int i = 0; i < UNROLL; i++)
      for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m][i].add(weight + r * k + place + i * PAIR, x + m * x_stride + place + i * PAIR);
  for (; place < k; place += PAIR)
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) {
        const T *w = weight + r * k + place, *part = x + m * x_stride + place;
        if (place + PAIR <= k) sums[r][m][0].add(w, part);
        else sums[r][m][0].add(w, part, k - place);
      }
  for (int r = 0; r < R; r++) Sum<T>::totals(sums[r], out[r]);
}

// A weight [n, k] as plain numbers or in panels, and a bias [n] or none. A norm's weight is [n], and k is 0.
template <typename T>
struct Matrix {
  const T *weight = nullptr, *bias = nullptr;
  int64_t n = 0, k = 0;
  Panels panels{};
};

using Optionals = c10::List<std::optional<at::Tensor>>;

// Some numbers in one piece, so many if it is said how many; null where there is no tensor.
template <typename T>
const T* pointer(const std::optional<at::Tensor>& x, int64_t count = 0) {
  TORCH_CHECK(!x || (x->is_contiguous() && (count == 0 || x->numel() == count)), "a weight in one piece, not ", x->sizes());
  return x ? x->const_data_ptr<T>() : nullptr;
}

template <typename T>
Matrix<T> matrix(const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias) {
  if (scales) {
    const Panels own = panels(weight, *scales);
    return {nullptr, pointer<T>(bias, own.n), own.n, own.k, own};
  }
  return {pointer<T>(weight), pointer<T>(bias, weight.size(0)), weight.size(0), weight.dim() == 2 ? weight.size(1) : 0};
}

template <typename T>
struct Product {
  const T *weight, *bias, *x;
  T* y;
  int64_t rows, n, k, x_stride;

  // R rows of the weight with M rows of x.
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

  // A row of the weight at a time is one stream, which the hardware foresees. Where x is long, or has many rows, several
  // rows of the weight share each look at it.
  void run() const {
    const int64_t bytes = k * static_cast<int64_t>(sizeof(T));
    if (rows <= AT_ONCE<T> && rows * bytes <= LONG) return by_rows<AT_ONCE<T>>(rows, [&](auto count) { together<1, decltype(count)::value>(); });
    if (rows <= 2) return by_rows<2>(rows, [&](auto count) { together<8, decltype(count)::value>(); });
    if (rows <= SOME_ROWS) return by_rows(rows, [&](auto count) { together<4, decltype(count)::value>(); });
    by_rows<MOST_ROWS - SOME_ROWS>(rows - SOME_ROWS, [&](auto count) { together<4, SOME_ROWS, decltype(count)::value>(); });
  }

  // Ask for a row of the weight that comes next: while many products are taken, the hardware does not foresee enough.
  void ask_for(int64_t row) const {
    const char* from = reinterpret_cast<const char*>(weight + row * k);
    for (int64_t line = 0; line < k * static_cast<int64_t>(sizeof(T)); line += 64) __builtin_prefetch(from + line);
  }

  // R rows of the weight at a time, with M rows of x and then with N more.
  template <int R, int M, int N = 0>
  void together() const {
    by_shares(n, k * static_cast<int64_t>(sizeof(T)), R, [&](int64_t row, int64_t end) {
      for (; row + R <= end; row += R) {
        if constexpr (M > SOME_ROWS) ask_for(row + R);
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

// x, whose rows lie `x_stride` apart -> y [rows, n].
template <typename T>
void multiply(const Matrix<T>& by, const T* x, int64_t rows, int64_t x_stride, T* y) {
  if (by.weight != nullptr) {
    return Product<T>{by.weight, by.bias, x, y, rows, by.n, by.k, x_stride}.run();
  }
  const auto write = [&](int64_t m, int64_t row, float number) {
    y[m * by.n + row] = static_cast<T>(by.bias ? number + static_cast<float>(by.bias[row]) : number);
  };
  const auto run = [&](const auto& steps) { by.panels.run(steps, rows, write); };
  if (by.panels.bits == 8) run(Steps16(x, x_stride, rows, by.k));
  else if (by.panels.group == 16) run(Steps8<16>(x, x_stride, rows, by.k));
  else run(Steps8<32>(x, x_stride, rows, by.k));
}

template <typename T>
std::vector<T> product(const Matrix<T>& by, const T* x, int64_t rows, int64_t x_stride) {
  std::vector<T> y(rows * by.n);
  multiply(by, x, rows, x_stride, y.data());
  return y;
}

// x [M, in], weight [out, in] of x's dtype, or in panels with its scales, bias [out] -> [M, out]; sums in float32,
// rounded once.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && 1 <= x.size(0) && x.size(0) <= MOST_ROWS, "linear: 1 to ", MOST_ROWS, " rows, not ", x.sizes());
  const at::Tensor from = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor y;
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Matrix<T> by = matrix<T>(weight, scales, bias);
    TORCH_CHECK(x.size(1) == by.k, "linear: ", x.sizes(), " by [", by.n, ", ", by.k, "]");
    y = at::empty({x.size(0), by.n}, x.options());
    multiply(by, from.const_data_ptr<T>(), x.size(0), from.stride(0), y.mutable_data_ptr<T>());
  });
  return y;
}

}  // namespace
