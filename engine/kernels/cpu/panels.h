// Weights of 8 and 4 bits in the layout of engine/quant/panels.py: panels of 32 rows, one contiguous stream each.
//
// A line has a few columns of all 32 rows, and each 32-bit lane sums the products of one row, so nothing is added across
// lanes. x is quantized to integers, so that the products and sums of a block are exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
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
constexpr int64_t EXACT = 256;           // columns of 8 bits whose sum of products fits into 32 bits
constexpr int64_t ZERO_CODE = 8;         // the 4-bit code of zero

template <typename V>
inline V load_bytes(const void* address) {
  V vector;
  std::memcpy(&vector, address, sizeof vector);
  return vector;
}

template <typename V>
inline void store_bytes(void* address, V vector) {
  std::memcpy(address, &vector, sizeof vector);
}

// The four bytes at an address, in every lane.
inline Words in_every_lane(const void* address) {
  return (Words)(Sums{} + load_bytes<int32_t>(address));
}

// sums + a b, with the products of two neighbouring 16-bit numbers added.
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

// sums + a b for bytes, a unsigned and below 128 (with VNNI 256), b signed, with the products of four neighbours added.
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

inline Floats to_floats(Sums x) {
  return __builtin_convertvector(x, Floats);
}

// The sum of the independent chains of a sum.
template <int CHAINS>
inline Sums total(const Sums (&chains)[CHAINS]) {
  return CHAINS == 1 ? chains[0] : chains[0] + chains[CHAINS - 1];
}

// Load a vector of a line once (compilers would load it again for each use), and prefetch one further on.
inline Words line_part(const uint8_t* line, int part) {
  __builtin_prefetch(line + part * WIDTH + AHEAD, 0, 3);
  Words words = load_bytes<Words>(line + part * WIDTH);
#if defined(CPU_CAPABILITY_AVX512)
  asm("" : "+v"(words));
#elif defined(CPU_CAPABILITY_AVX2)
  asm("" : "+x"(words));
#endif
  return words;
}

// bfloat16 is the upper half of float32.
inline Floats load_scales(const uint16_t* address) {
  typedef uint16_t Halves __attribute__((vector_size(WIDTH / 2)));
  return (Floats)(__builtin_convertvector(load_bytes<Halves>(address), Sums) << 16);
}

// Quantize numbers to integers, as multiples of 1 / `inverse`.
template <typename T, typename S>
void quantize_to(const T* x, int64_t count, float inverse, S* out) {
  for_pairs(count, [&](int64_t first, int64_t n) {
    const Pair part = load(x + first, n);
    int32_t rounded[PAIR];
    at::vec::convert_to_int_of_same_size((part.low * Vec(inverse)).round()).store(rounded);
    at::vec::convert_to_int_of_same_size((part.high * Vec(inverse)).round()).store(rounded + LANES);
    S narrow[PAIR];
    for (int64_t i = 0; i < PAIR; i++) narrow[i] = static_cast<S>(rounded[i]);
    std::memcpy(out + first, narrow, n * sizeof(S));
  });
}

// The largest |x|; NaN if any is NaN.
template <typename T>
float max_abs(const T* x, int64_t count) {
  Vec maxima(0.0f);
  for_pairs(count, [&](int64_t i, int64_t n) {
    const Pair part = load(x + i, n);
    maxima = at::vec::maximum(maxima, at::vec::maximum(part.low.abs(), part.high.abs()));
  });
  return max(maxima);
}

// The scale at which `largest` becomes the integer `limit`; NaN if it is infinite, so that results become NaN.
inline float scale_for(float largest, float limit) {
  return std::isfinite(largest) ? largest / limit : std::numeric_limits<float>::quiet_NaN();
}

inline float inverse_scale(float largest, float limit) {
  return largest > 1e-30f && std::isfinite(largest) ? limit / largest : 0.0f;
}

// Rows of x for 8-bit weights: 16-bit integers, finer than bfloat16, with one scale per row.
struct QuantizedX16 {
  int64_t k;
  std::vector<int16_t> codes;  // [rows, k]
  std::vector<float> scales;   // [rows]

  template <typename T>
  QuantizedX16(const T* x, int64_t stride, int64_t rows, int64_t k) : k(k), codes(rows * k), scales(rows) {
    for (int64_t row = 0; row < rows; row++) {
      const float largest = max_abs(x + row * stride, k);
      scales[row] = scale_for(largest, 32767.0f);
      quantize_to(x + row * stride, k, inverse_scale(largest, 32767.0f), codes.data() + row * k);
    }
  }

  // Two neighbouring columns, in every lane.
  Words pair(int64_t row, int64_t column) const {
    return in_every_lane(codes.data() + row * k + column);
  }
};

// Rows of x for 4-bit weights: 8-bit integers, with one scale per group. Their steps are 1/254 of a group's range, those of
// the weights 1/15; and products take half the instructions of 16 bits, which would not keep up with memory.
template <int GROUP>
struct QuantizedX8 {
  int64_t k;
  std::vector<int8_t> codes;     // [rows, k]
  std::vector<float> scales;     // [rows, k / GROUP]
  std::vector<int32_t> offsets;  // [rows, k / GROUP]: minus the contribution of ZERO_CODE to a group's sum

  template <typename T>
  QuantizedX8(const T* x, int64_t stride, int64_t rows, int64_t k) : k(k), codes(rows * k), scales(rows * k / GROUP), offsets(rows * k / GROUP) {
    for (int64_t group = 0; group < rows * k / GROUP; group++) {
      const T* numbers = x + group * GROUP / k * stride + group * GROUP % k;
      const float largest = max_abs(numbers, GROUP);
      int8_t* out = codes.data() + group * GROUP;
      scales[group] = scale_for(largest, 127.0f);
      quantize_to(numbers, GROUP, inverse_scale(largest, 127.0f), out);
      int32_t total = 0;
      for (int i = 0; i < GROUP; i++) total += out[i];
      offsets[group] = -static_cast<int32_t>(ZERO_CODE) * total;
    }
  }

  // Four neighbouring columns, in every lane.
  Words quad(int64_t row, int64_t column) const {
    return in_every_lane(codes.data() + row * k + column);
  }
};

// A weight [n, k]: 8 bits with a float32 scale per row, or 4 bits with a bfloat16 scale per group of a row.
struct Panels {
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;
  int bits = 0;
  int64_t n = 0, k = 0, group = 0;  // group: 4-bit columns that share a scale, 16 or 32, with a table 64
  const float* table = nullptr;     // if not null, 4-bit codes stand for its 16 numbers, and the scales are float32

  int64_t bytes() const { return PANEL * k * bits / 8; }  // of a panel
  int64_t count() const { return (n + PANEL - 1) / PANEL; }

  // Products of M rows of x with the 32 rows of a panel. STRIP vectors at a time, so that their sums stay in registers.
  template <int M>
  __attribute__((noinline)) void panel(int64_t panel, const QuantizedX16& x, int64_t row, Floats (&out)[M][PARTS]) const {
    constexpr int STRIP = 2, CHAINS = M <= 4 ? 2 : 1;
    const uint8_t* stream = codes + panel * bytes();
    for (int64_t begin = 0; begin < k; begin += EXACT)
      for (int strip = 0; strip < PARTS; strip += STRIP) {
        Sums sums[M][STRIP][CHAINS] = {};
        for (int64_t column = begin; column < std::min(k, begin + EXACT); column += 4) {
          Words first[M], second[M];
          for (int m = 0; m < M; m++) first[m] = x.pair(row + m, column), second[m] = x.pair(row + m, column + 2);
          for (int part = 0; part < STRIP; part++) {
            const Words both = line_part(stream + column * PANEL, strip + part), even = both << 8 >> 8, odd = both >> 8;
            for (int m = 0; m < M; m++) sums[m][part][0] = dot_pairs(sums[m][part][0], even, first[m]);
            for (int m = 0; m < M; m++) sums[m][part][CHAINS - 1] = dot_pairs(sums[m][part][CHAINS - 1], odd, second[m]);
          }
        }
        for (int m = 0; m < M; m++)
          for (int part = 0; part < STRIP; part++) out[m][strip + part] += to_floats(total(sums[m][part]));
      }
    float row_scales[PANEL] = {};
    std::copy_n(static_cast<const float*>(scales) + panel * PANEL, std::min(PANEL, n - panel * PANEL), row_scales);
    for (int m = 0; m < M; m++)
      for (int part = 0; part < PARTS; part++) out[m][part] *= load_bytes<Floats>(row_scales + part * (PANEL / PARTS)) * x.scales[row + m];
  }

  template <int M, int GROUP>
  __attribute__((noinline)) void panel(int64_t panel, const QuantizedX8<GROUP>& x, int64_t row, Floats (&out)[M][PARTS]) const {
    constexpr int STRIP = 2, CHAINS = M <= 4 ? 2 : 1;
    const int64_t groups = k / GROUP;
    for (int64_t group = 0; group < groups; group++) {
      const uint8_t* stream = codes + panel * bytes() + group * GROUP * PANEL / 2;
      const uint16_t* group_scales = static_cast<const uint16_t*>(scales) + (panel * groups + group) * PANEL;
      for (int strip = 0; strip < PARTS; strip += STRIP) {
        Sums sums[M][STRIP][CHAINS] = {};
        for (int m = 0; m < M; m++)
          for (int part = 0; part < STRIP; part++) sums[m][part][0] += x.offsets[(row + m) * groups + group];
        for (int64_t column = 0; column < GROUP; column += 8) {
          Words first[M], second[M];
          for (int m = 0; m < M; m++) first[m] = x.quad(row + m, group * GROUP + column), second[m] = x.quad(row + m, group * GROUP + column + 4);
          for (int part = 0; part < STRIP; part++) {
            const Words bytes_of_part = line_part(stream + column * PANEL / 2, strip + part);
            const Words halves[2] = {bytes_of_part & 0x0f0f, (Words)((Unsigned)bytes_of_part >> 4) & 0x0f0f};
            for (int m = 0; m < M; m++) sums[m][part][0] = dot_quads(sums[m][part][0], halves[0], first[m]);
            for (int m = 0; m < M; m++) sums[m][part][CHAINS - 1] = dot_quads(sums[m][part][CHAINS - 1], halves[1], second[m]);
          }
        }
        for (int part = 0; part < STRIP; part++) {
          const Floats scale = load_scales(group_scales + (strip + part) * (PANEL / PARTS));
          for (int m = 0; m < M; m++) out[m][strip + part] += scale * x.scales[(row + m) * groups + group] * to_floats(total(sums[m][part]));
        }
      }
    }
  }
};

// Call write(row of x, row of the weight, numbers, count) for the products of M rows of x, from `first` on, with a panel.
template <int M, typename F>
void write_panel(const Floats (&out)[M][PARTS], int64_t first, int64_t panel, int64_t n, const F& write) {
  const int64_t panel_rows = std::min(PANEL, n - panel * PANEL);
  for (int m = 0; m < M; m++) {
    float numbers[PANEL];
    std::memcpy(numbers, out[m], sizeof numbers);
    write(first + m, panel * PANEL, numbers, panel_rows);
  }
}

// x [rows, k] times a weight of type W in the layout of `layout`: calls `write` as `write_panel` does, from any thread,
// each time after write.begin(). A panel is read from memory once for all rows.
template <typename W, typename X, typename F>
void multiply_panels(const Panels& layout, const W& weight, const X& x, int64_t rows, const F& write) {
  parallel_rows(layout.count(), layout.bytes(), 1, [&](int64_t begin, int64_t end) {
    write.begin();
    for (; begin < end; begin++)
      for_row_blocks(rows, [&](int64_t first, auto block) {
        constexpr int M = decltype(block)::value;
        Floats out[M][PARTS] = {};
        weight.template panel<M>(begin, x, first, out);
        write_panel(out, first, begin, layout.n, write);
      });
  });
}

// The weight [n, k] and its scales as engine/quant/panels.py and tables.py store them.
inline Panels panels(const at::Tensor& weight, const at::Tensor& scales) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == PANEL && weight.size(3) == 4 && weight.is_contiguous() && scales.is_contiguous(), "panels: ", weight.sizes());
  const bool eight_bits = weight.scalar_type() == at::kChar;
  const int64_t count = weight.size(0), k = weight.size(1) * (eight_bits ? 4 : 8), n = eight_bits ? scales.numel() : count * PANEL;
  if (weight.scalar_type() == at::kByte && scales.scalar_type() == at::kFloat) {
    constexpr int64_t GROUP = 64, TABLE = 16;
    TORCH_CHECK(k % GROUP == 0 && scales.numel() == n * k / GROUP + TABLE, "panels: scales and table ", scales.sizes(), " of ", weight.sizes());
    return {static_cast<const uint8_t*>(weight.const_data_ptr()), scales.const_data_ptr(), 4, n, k, GROUP, scales.const_data_ptr<float>() + n * k / GROUP};
  }
  const int64_t group = eight_bits || scales.numel() == 0 ? 0 : n * k / scales.numel();
  TORCH_CHECK(eight_bits || weight.scalar_type() == at::kByte, "panels: codes of ", weight.scalar_type());
  TORCH_CHECK(scales.scalar_type() == (eight_bits ? at::kFloat : at::kBFloat16), "panels: scales of ", scales.scalar_type());
  TORCH_CHECK(eight_bits ? (n + PANEL - 1) / PANEL == count : (group == 16 || group == 32) && scales.numel() * group == n * k, "panels: scales ", scales.sizes(), " of ", weight.sizes());
  return {static_cast<const uint8_t*>(weight.const_data_ptr()), scales.const_data_ptr(), eight_bits ? 8 : 4, n, k, group};
}

}  // namespace
