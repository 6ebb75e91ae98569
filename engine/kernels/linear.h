// y = x Wᵀ + b for a few rows of x: one pass over W, at the speed of memory.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "shares.h"
#include "vectors.h"

namespace {

constexpr int64_t LONG = 15 * 1024;    // bytes of x: half of a first-level cache
constexpr int64_t MOST_ROWS = 4;      // of more, a product is no longer bound by reading its weight
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
  float total() const { return sum(low + high); }
};

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
  void add(Sum other) { both = _mm512_add_ps(both, other.both); }
  float total() const { return _mm512_reduce_add_ps(both); }
};
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
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) {
      for (int i = 1; i < UNROLL; i++) sums[r][m][0].add(sums[r][m][i]);
      out[r][m] = sums[r][m][0].total();
    }
}

template <typename T>
struct Product {
  const T *weight, *bias, *x;
  T* y;
  int64_t n, k, x_stride;

  template <int R, int M>
  void rows(int64_t row) const {
    float out[R][M];
    products<R, M>(weight + row * k, x, x_stride, k, out);
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++)
        y[m * n + row + r] = static_cast<T>(bias ? out[r][m] + static_cast<float>(bias[row + r]) : out[r][m]);
  }

  // A row of the weight at a time is one stream, which the hardware foresees. A long x leaves the first cache no room
  // for what streams by, so there several rows share each look at it.
  template <int M>
  void run() const {
    constexpr int TOGETHER = M <= 2 ? 8 : 4;
    const int64_t bytes = k * static_cast<int64_t>(sizeof(T));
    const bool is_long = M * bytes > LONG;
    by_shares(n, bytes, is_long ? TOGETHER : 1, [&](int64_t row, int64_t end) {
      for (; is_long && row + TOGETHER <= end; row += TOGETHER) rows<TOGETHER, M>(row);
      for (; row < end; row++) rows<1, M>(row);
    });
  }
};

template <typename T>
void few_rows(const Product<T>& product, int64_t rows) {
  switch (rows) {
    case 1: return product.template run<1>();
    case 2: return product.template run<2>();
    case 3: return product.template run<3>();
    default: return product.template run<4>();
  }
}

// The same for x whose rows lie `x_stride` apart -> [rows, n].
template <typename T>
std::vector<T> product(const T* weight, const T* bias, const T* x, int64_t rows, int64_t n, int64_t k, int64_t x_stride) {
  std::vector<T> y(rows * n);
  few_rows(Product<T>{weight, bias, x, y.data(), n, k, x_stride}, rows);
  return y;
}

// x [M, in], weight [out, in], bias [out], all of one dtype -> [M, out]; sums in float32, rounded once.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "linear: ", x.sizes(), " by ", weight.sizes());
  TORCH_CHECK(1 <= x.size(0) && x.size(0) <= MOST_ROWS, "linear: 1 to ", MOST_ROWS, " rows, not ", x.size(0));
  TORCH_CHECK(weight.is_contiguous(), "linear: a weight in one piece");
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->numel() == weight.size(0)), "linear: a bias for each of ", weight.size(0));
  const at::Tensor from = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* b = bias ? bias->const_data_ptr<T>() : nullptr;
    few_rows(Product<T>{weight.const_data_ptr<T>(), b, from.const_data_ptr<T>(), y.mutable_data_ptr<T>(), weight.size(0), weight.size(1), from.stride(0)}, x.size(0));
  });
  return y;
}

}  // namespace
