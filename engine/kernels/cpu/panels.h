// Weights of 8 and 4 bits, as engine/formats/panels.py lays them out: panels of 32 rows, one contiguous stream each.
//
// A line holds a few columns of all 32 rows, and each 32-bit lane sums the products of one row, so that nothing is
// added across lanes. x goes along in whole steps, so that every product and sum of a block is exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "shares.h"
#include "vectors.h"

namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t WIDTH = 64;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int64_t WIDTH = 32;
#else
constexpr int64_t WIDTH = 16;
#endif
typedef int16_t Words __attribute__((vector_size(WIDTH)));
typedef uint16_t Unsigned __attribute__((vector_size(WIDTH)));
typedef int32_t Sums __attribute__((vector_size(WIDTH)));
typedef float Floats __attribute__((vector_size(WIDTH)));

constexpr int64_t PANEL = 32;            // rows
constexpr int64_t LINE = 4 * PANEL;      // bytes: 4 columns of 8 bits of each row, or 8 of 4 bits
constexpr int PARTS = LINE / WIDTH;      // vectors of a line
constexpr int64_t EXACT = 256;           // columns of 8 bits whose products fit into 32 bits together
constexpr int64_t MIDDLE = 8;            // the code of 4 bits that stands for zero

template <typename V>
inline V load_bytes(const void* from) {
  V vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// sums + a b, the products of neighbours added.
inline Sums dot_pairs(Sums sums, Words a, Words b) {
#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512VNNI__)
  return (Sums)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(CPU_CAPABILITY_AVX512)
  return sums + (Sums)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(CPU_CAPABILITY_AVX2)
  return sums + (Sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  const Sums first = ((Sums)a << 16 >> 16) * ((Sums)b << 16 >> 16), second = ((Sums)a >> 16) * ((Sums)b >> 16);
  return sums + (first + second);
#endif
}

// sums + a b by bytes, a unsigned and below 16, b signed; the products of four neighbours added.
inline Sums dot_quads(Sums sums, Words a, Words b) {
#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512VNNI__)
  return (Sums)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(CPU_CAPABILITY_AVX512)
  return dot_pairs(sums, (Words)_mm512_maddubs_epi16((__m512i)a, (__m512i)b), Words{} + 1);
#elif defined(CPU_CAPABILITY_AVX2)
  return dot_pairs(sums, (Words)_mm256_maddubs_epi16((__m256i)a, (__m256i)b), Words{} + 1);
#else
  const Words products = (a & 0xff) * (b << 8 >> 8) + (a >> 8) * (b >> 8), one = Words{} + 1;
  return dot_pairs(sums, products, one);
#endif
}

inline Floats widened(Sums x) {
  return __builtin_convertvector(x, Floats);
}

// A vector of a line, loaded once, however many operations take it (compilers would load it for each).
inline Words line_part(const uint8_t* line, int part) {
  Words words = load_bytes<Words>(line + part * WIDTH);
#if defined(CPU_CAPABILITY_AVX512)
  asm("" : "+v"(words));
#elif defined(CPU_CAPABILITY_AVX2)
  asm("" : "+x"(words));
#endif
  return words;
}

// bfloat16 is the upper half of float32.
inline Floats scales_at(const uint16_t* from) {
  typedef uint16_t Halves __attribute__((vector_size(WIDTH / 2)));
  return (Floats)(__builtin_convertvector(load_bytes<Halves>(from), Sums) << 16);
}

// Numbers as whole steps of the size 1 / `inverse`.
template <typename T, typename S>
void to_steps(const T* x, int64_t count, float inverse, S* to) {
  by_pairs(count, [&](int64_t place, int64_t some) {
    const Pair part = load(x + place, some);
    int32_t rounded[PAIR];
    at::vec::convert_to_int_of_same_size((part.low * Vec(inverse)).round()).store(rounded);
    at::vec::convert_to_int_of_same_size((part.high * Vec(inverse)).round()).store(rounded + LANES);
    S narrow[PAIR];
    for (int64_t i = 0; i < PAIR; i++) narrow[i] = static_cast<S>(rounded[i]);
    std::memcpy(to + place, narrow, some * sizeof(S));
  });
}

// The largest |x|; a NaN is larger than all.
template <typename T>
float most_of(const T* x, int64_t count) {
  Vec most(0.0f);
  by_pairs(count, [&](int64_t place, int64_t some) {
    const Pair part = load(x + place, some);
    most = at::vec::maximum(most, at::vec::maximum(part.low.abs(), part.high.abs()));
  });
  return largest(most);
}

// The size of a step at which `top` is `most` of them; infinities become NaN, as what is computed with them.
inline float step_size(float top, float most) {
  return std::isfinite(top) ? top / most : std::numeric_limits<float>::quiet_NaN();
}

inline float inverse_of(float top, float most) {
  return top > 1e-30f && std::isfinite(top) ? most / top : 0.0f;
}

// Rows of x for weights of 8 bits: in 16 bits, finer than bfloat16, by the largest number of each row.
struct Steps16 {
  int64_t k;
  std::vector<int16_t> steps;  // [rows, k]
  std::vector<float> sizes;    // [rows]

  template <typename T>
  Steps16(const T* x, int64_t stride, int64_t rows, int64_t k) : k(k), steps(rows * k), sizes(rows) {
    for (int64_t row = 0; row < rows; row++) {
      const float top = most_of(x + row * stride, k);
      sizes[row] = step_size(top, 32767.0f);
      to_steps(x + row * stride, k, inverse_of(top, 32767.0f), steps.data() + row * k);
    }
  }

  // Two neighbours, for every lane.
  Words pair(int64_t row, int64_t column) const {
    int32_t both;
    std::memcpy(&both, steps.data() + row * k + column, sizeof both);
    return (Words)(Sums{} + both);
  }
};

// For weights of 4 bits: in 8 bits, by the largest number of each group. That is a 254th of it, where the weights'
// steps are a 15th; and a product takes half the instructions, without which it does not keep up with memory.
template <int GROUP>
struct Steps8 {
  int64_t k;
  std::vector<int8_t> steps;     // [rows, k]
  std::vector<float> sizes;      // [rows, k / GROUP]
  std::vector<int32_t> offsets;  // [rows, k / GROUP]: what MIDDLE adds to the sum of a group, less

  template <typename T>
  Steps8(const T* x, int64_t stride, int64_t rows, int64_t k) : k(k), steps(rows * k), sizes(rows * k / GROUP), offsets(rows * k / GROUP) {
    for (int64_t group = 0; group < rows * k / GROUP; group++) {
      const T* from = x + group * GROUP / k * stride + group * GROUP % k;
      const float top = most_of(from, GROUP);
      int8_t* to = steps.data() + group * GROUP;
      sizes[group] = step_size(top, 127.0f);
      to_steps(from, GROUP, inverse_of(top, 127.0f), to);
      int32_t total = 0;
      for (int i = 0; i < GROUP; i++) total += to[i];
      offsets[group] = -static_cast<int32_t>(MIDDLE) * total;
    }
  }

  // Four neighbours, for every lane.
  Words quad(int64_t row, int64_t column) const {
    int32_t all;
    std::memcpy(&all, steps.data() + row * k + column, sizeof all);
    return (Words)(Sums{} + all);
  }
};

// A weight [n, k]: 8 bits with a float32 scale a row, or 4 bits with a bfloat16 scale for each group of a row.
struct Panels {
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;
  int bits = 0;
  int64_t n = 0, k = 0, group = 0;  // columns of 4 bits that share a scale: 16 or 32

  int64_t bytes() const { return PANEL * k * bits / 8; }  // of a panel
  int64_t count() const { return (n + PANEL - 1) / PANEL; }

  // The products of M rows of x with the rows of a panel: so many vectors at a time that their sums stay in registers.
  template <int M>
  __attribute__((noinline)) void panel(int64_t panel, const Steps16& x, int64_t row, Floats (&out)[M][PARTS]) const {
    constexpr int STRIP = M <= 2 ? 2 : 1;
    const uint8_t* from = codes + panel * bytes();
    for (int64_t begin = 0; begin < k; begin += EXACT)
      for (int strip = 0; strip < PARTS; strip += STRIP) {
        Sums low[M][STRIP] = {}, high[M][STRIP] = {};
        for (int64_t column = begin; column < std::min(k, begin + EXACT); column += 4) {
          Words first[M], second[M];
          for (int m = 0; m < M; m++) first[m] = x.pair(row + m, column), second[m] = x.pair(row + m, column + 2);
          for (int part = 0; part < STRIP; part++) {
            const Words both = line_part(from + column * PANEL, strip + part);
            for (int m = 0; m < M; m++) {
              low[m][part] = dot_pairs(low[m][part], both << 8 >> 8, first[m]);
              high[m][part] = dot_pairs(high[m][part], both >> 8, second[m]);
            }
          }
        }
        for (int m = 0; m < M; m++)
          for (int part = 0; part < STRIP; part++) out[m][strip + part] += widened(low[m][part] + high[m][part]);
      }
    float own[PANEL] = {};
    std::copy_n(static_cast<const float*>(scales) + panel * PANEL, std::min(PANEL, n - panel * PANEL), own);
    for (int m = 0; m < M; m++)
      for (int part = 0; part < PARTS; part++) out[m][part] *= load_bytes<Floats>(own + part * (PANEL / PARTS)) * x.sizes[row + m];
  }

  template <int M, int GROUP>
  __attribute__((noinline)) void panel(int64_t panel, const Steps8<GROUP>& x, int64_t row, Floats (&out)[M][PARTS]) const {
    constexpr int STRIP = M <= 2 ? 2 : 1;
    const int64_t groups = k / GROUP;
    for (int64_t group = 0; group < groups; group++) {
      const uint8_t* from = codes + panel * bytes() + group * GROUP * PANEL / 2;
      const uint16_t* own = static_cast<const uint16_t*>(scales) + (panel * groups + group) * PANEL;
      for (int strip = 0; strip < PARTS; strip += STRIP) {
        Sums low[M][STRIP] = {}, high[M][STRIP] = {};
        for (int m = 0; m < M; m++)
          for (int part = 0; part < STRIP; part++) low[m][part] += x.offsets[(row + m) * groups + group];
        for (int64_t column = 0; column < GROUP; column += 8) {
          Words first[M], second[M];
          for (int m = 0; m < M; m++) first[m] = x.quad(row + m, group * GROUP + column), second[m] = x.quad(row + m, group * GROUP + column + 4);
          for (int part = 0; part < STRIP; part++) {
            const Words both = line_part(from + column * PANEL / 2, strip + part);
            const Words halves[2] = {both & 0x0f0f, (Words)((Unsigned)both >> 4) & 0x0f0f};
            for (int m = 0; m < M; m++) {
              low[m][part] = dot_quads(low[m][part], halves[0], first[m]);
              high[m][part] = dot_quads(high[m][part], halves[1], second[m]);
            }
          }
        }
        for (int part = 0; part < STRIP; part++) {
          const Floats scale = scales_at(own + (strip + part) * (PANEL / PARTS));
          for (int m = 0; m < M; m++) out[m][strip + part] += scale * x.sizes[(row + m) * groups + group] * widened(low[m][part] + high[m][part]);
        }
      }
    }
  }

  // x [rows, k] times the weight; write(row of x, row of the weight, number), from any thread. A panel is read from
  // memory once, however many rows there are.
  template <typename X, typename F>
  void run(const X& x, int64_t rows, F write) const {
    by_shares(count(), bytes(), 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin++)
        by_some_rows(rows, [&](int64_t first, auto some) {
          constexpr int M = decltype(some)::value;
          Floats out[M][PARTS] = {};
          panel<M>(begin, x, first, out);
          const int64_t own = std::min(PANEL, n - begin * PANEL);
          for (int m = 0; m < M; m++) {
            float numbers[PANEL];
            std::memcpy(numbers, out[m], sizeof numbers);
            for (int64_t row = 0; row < own; row++) write(first + m, begin * PANEL + row, numbers[row]);
          }
        });
    });
  }
};

// The weight [n, k] of engine/formats/panels.py.
inline Panels panels(const at::Tensor& weight, const at::Tensor& scales) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == PANEL && weight.size(3) == 4 && weight.is_contiguous() && scales.is_contiguous(), "panels: ", weight.sizes());
  const bool eight = weight.scalar_type() == at::kChar;
  const int64_t count = weight.size(0), k = weight.size(1) * (eight ? 4 : 8), n = eight ? scales.numel() : count * PANEL;
  const int64_t group = eight || scales.numel() == 0 ? 0 : n * k / scales.numel();
  TORCH_CHECK(eight || weight.scalar_type() == at::kByte, "panels: codes of ", weight.scalar_type());
  TORCH_CHECK(scales.scalar_type() == (eight ? at::kFloat : at::kBFloat16), "panels: scales of ", scales.scalar_type());
  TORCH_CHECK(eight ? (n + PANEL - 1) / PANEL == count : (group == 16 || group == 32) && scales.numel() * group == n * k, "panels: scales ", scales.sizes(), " of ", weight.sizes());
  return {static_cast<const uint8_t*>(weight.const_data_ptr()), scales.const_data_ptr(), eight ? 8 : 4, n, k, group};
}

}  // namespace
