// Vector loads, stores and sums on ATen's Vectorized: AVX-512, AVX2 or NEON by the compiler's flags, else plain loops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace {

using at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t LANES = Vec::size();
constexpr int64_t PAIR = 2 * LANES;   // numbers per load: in bfloat16 they fill a register
constexpr int64_t AHEAD = 6 * 1024;  // bytes of a weight to prefetch ahead: the hardware does not prefetch across pages

struct Pair {
  Vec low, high;
};

inline Pair load(const float* x) {
  return {Vec::loadu(x), Vec::loadu(x + LANES)};
}

inline Pair load(const BFloat16* x) {
  const auto [low, high] = at::vec::convert_bfloat16_float(at::vec::Vectorized<BFloat16>::loadu(x));
  return {low, high};
}

// Load `count` numbers, followed by zeros.
inline Pair load(const float* x, int64_t count) {
  const int64_t first = std::min(count, LANES);
  return {Vec::loadu(x, first), Vec::loadu(x + first, count - first)};
}

inline Pair load(const BFloat16* x, int64_t count) {
  const auto [low, high] = at::vec::convert_bfloat16_float(at::vec::Vectorized<BFloat16>::loadu(x, count));
  return {low, high};
}

// The same numbers in the order that takes the fewest instructions: those of bfloat16 at even places, then at odd ones.
inline Pair load_split(const float* x) {
  return load(x);
}

inline Pair load_split(const BFloat16* x) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i both = _mm512_loadu_si512(x);
  return {Vec(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))), Vec(_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536))))};
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return {Vec(_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))), Vec(_mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536))))};
#else
  return load(x);
#endif
}

// Load `count` numbers in that order, followed by zeros.
template <typename T>
inline Pair load_split(const T* x, int64_t count) {
  if (count == PAIR) return load_split(x);
  T padded[PAIR] = {};
  std::copy_n(x, count, padded);
  return load_split(padded);
}

// Numbers in the order of `load_split` of T -> in their own order.
template <typename T>
inline Pair merge_split(Pair x) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, BFloat16>) {
    const auto [low, high] = at::vec::interleave2(x.low, x.high);
    return {low, high};
  }
#endif
  return x;
}

// Store the first `count` numbers.
inline void store(float* out, Pair x, int64_t count = PAIR) {
  const int64_t first = std::min(count, LANES);
  x.low.store(out, first);
  if (count > first) x.high.store(out + first, count - first);
}

inline at::vec::Vectorized<BFloat16> to_bfloat16(Pair x) {
#if defined(__AVX512BF16__) && defined(CPU_CAPABILITY_AVX512)
  return at::vec::Vectorized<BFloat16>((__m512i)_mm512_cvtne2ps_pbh(x.high, x.low));
#else
  return at::vec::convert_float_bfloat16(x.low, x.high);
#endif
}

inline void store(BFloat16* out, Pair x, int64_t count = PAIR) {
  to_bfloat16(x).store(out, count);
}

inline float sum(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, x);
}

// The largest number; NaN if any is NaN.
inline float max(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, x);
}

// The sums of vectors, each added in the same order whatever their number: four_sums of four, all_sums of any.
#if defined(CPU_CAPABILITY_AVX512)
// Each quarter of the result has a part of the sums of a, b, c and d.
inline __m512 quarter_sums(const Vec* x) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}

inline void four_sums(const Vec* x, float* out) {
  const __m512 quarters = quarter_sums(x);
  const __m128 low = _mm_add_ps(_mm512_castps512_ps128(quarters), _mm512_extractf32x4_ps(quarters, 1));
  const __m128 high = _mm_add_ps(_mm512_extractf32x4_ps(quarters, 2), _mm512_extractf32x4_ps(quarters, 3));
  _mm_storeu_ps(out, _mm_add_ps(low, high));
}

// Quarters 0 + 1 and 2 + 3 of two vectors.
inline __m512 add_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

inline void sixteen_sums(const Vec* x, float* out) {
  const __m512 first = add_quarters(quarter_sums(x), quarter_sums(x + 4)), second = add_quarters(quarter_sums(x + 8), quarter_sums(x + 12));
  _mm512_storeu_ps(out, add_quarters(first, second));
}
#elif defined(CPU_CAPABILITY_AVX2)
inline void four_sums(const Vec* x, float* out) {
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
#else
inline void four_sums(const Vec* x, float* out) {
  for (int i = 0; i < 4; i++) out[i] = sum(x[i]);
}
#endif

template <int COUNT>
inline void all_sums(const Vec (&x)[COUNT], float* out) {
  int i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  for (; i + 16 <= COUNT; i += 16) sixteen_sums(x + i, out + i);
#endif
  for (; i + 4 <= COUNT; i += 4) four_sums(x + i, out + i);
  if (i == COUNT) return;
  Vec rest[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  float four[4];
  for (int j = i; j < COUNT; j++) rest[j - i] = x[j];
  four_sums(rest, four);
  std::copy_n(four, COUNT - i, out + i);
}

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// 2^f for f in [0, 1), by a polynomial that is 1 at 0; its error is 1.4e-7.
inline Vec exp2_of_fraction(Vec f) {
  Vec y(0.00186713017f);
  for (const float c : {0.00901702978f, 0.0557999127f, 0.240164444f, 0.693151295f, 1.0f}) y = at::vec::fmadd(y, f, Vec(c));
  return y;
}
#endif

// 2^x for x <= 0: exactly 1 for 0, and 0 for minus infinity.
inline Vec exp2(Vec x) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_ps(exp2_of_fraction(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)), x);
#elif defined(CPU_CAPABILITY_AVX2)
  x = at::vec::clamp_min(x, Vec(-200.0f));
  const Vec floor = x.floor();
  const __m256i exponent = _mm256_max_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(floor), _mm256_set1_epi32(127)), _mm256_setzero_si256());
  return exp2_of_fraction(x - floor) * Vec(_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
#else
  return x.exp2();
#endif
}

#if defined(CPU_CAPABILITY_AVX512)
// Transpose 16 rows of 16 words (32 bits each).
inline __attribute__((always_inline)) void transpose_words(__m512i (&a)[16]) {
  __m512i b[16];
  for (int i = 0; i < 16; i += 2) b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]), a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88), b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
  for (int j = 0; j < 8; j++) a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88), a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd);
}
#endif

// Transpose a [rows, columns], in blocks of 16 by 16 -> b [columns, rows].
inline void transpose(const float* a, int64_t a_row, int64_t rows, int64_t columns, float* b, int64_t b_row) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16) {
#if defined(CPU_CAPABILITY_AVX512)
      __m512i words[16];
      for (int64_t r = 0; r < 16; r++) words[r] = _mm512_loadu_si512(a + (i + r) * a_row + j);
      transpose_words(words);
      for (int64_t r = 0; r < 16; r++) _mm512_storeu_si512(b + (j + r) * b_row + i, words[r]);
#else
      at::vec::transpose_mxn<float, 16, 16>(a + i * a_row + j, a_row, b + j * b_row + i, b_row);
#endif
    }
}

inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Call f with a zero of the tensor's type, bfloat16 or float32.
template <typename F>
inline void dispatch_type(const at::Tensor& x, F f) {
  x.scalar_type() == at::kBFloat16 ? f(BFloat16()) : f(0.0f);
}

// Call f(index, count) for each pair of vectors of `size` numbers; the last may have fewer numbers.
template <typename F>
inline void for_pairs(int64_t size, F f) {
  for (int64_t i = 0; i < size; i += PAIR) f(i, std::min(PAIR, size - i));
}

// Copy `count` numbers as float32.
template <typename T>
inline void copy_to_float(const T* x, int64_t count, float* to) {
  for_pairs(count, [&](int64_t i, int64_t n) { store(to + i, load(x + i, n), n); });
}

// `count` numbers as float32: x itself, or converted into `buffer`.
inline const float* to_float(const float* x, int64_t, float*) {
  return x;
}

inline const float* to_float(const BFloat16* x, int64_t count, float* buffer) {
  copy_to_float(x, count, buffer);
  return buffer;
}

}  // namespace
