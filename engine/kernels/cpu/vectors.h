// Loads and sums by the vector, on ATen's Vectorized: AVX-512, AVX2 or NEON as the compiler's flags say, else plain loops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>

#include <algorithm>
#include <cstdint>

namespace {

using at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t LANES = Vec::size();
constexpr int64_t PAIR = 2 * LANES;  // numbers of one load: as bfloat16 they fill a register

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

// The first `count` of them, then zeros.
inline Pair load(const float* x, int64_t count) {
  const int64_t first = std::min(count, LANES);
  return {Vec::loadu(x, first), Vec::loadu(x + first, count - first)};
}

inline Pair load(const BFloat16* x, int64_t count) {
  const auto [low, high] = at::vec::convert_bfloat16_float(at::vec::Vectorized<BFloat16>::loadu(x, count));
  return {low, high};
}

// The first `count` are written.
inline void store(float* to, Pair x, int64_t count = PAIR) {
  const int64_t first = std::min(count, LANES);
  x.low.store(to, first);
  if (count > first) x.high.store(to + first, count - first);
}

inline void store(BFloat16* to, Pair x, int64_t count = PAIR) {
  at::vec::convert_float_bfloat16(x.low, x.high).store(to, count);
}

inline float sum(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, x);
}

// The largest number; a NaN is larger than all.
inline float largest(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, x);
}

// The sums of four vectors.
#if defined(CPU_CAPABILITY_AVX512)
inline void four_sums(const Vec (&x)[4], float* to) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));  // in each quarter
  const __m128 low = _mm_add_ps(_mm512_castps512_ps128(abcd), _mm512_extractf32x4_ps(abcd, 1));
  const __m128 high = _mm_add_ps(_mm512_extractf32x4_ps(abcd, 2), _mm512_extractf32x4_ps(abcd, 3));
  _mm_storeu_ps(to, _mm_add_ps(low, high));
}
#else
inline void four_sums(const Vec (&x)[4], float* to) {
  for (int i = 0; i < 4; i++) to[i] = sum(x[i]);
}
#endif

// f of a zero of the numbers' type.
template <typename F>
inline void by_type(const at::Tensor& x, F f) {
  x.scalar_type() == at::kBFloat16 ? f(BFloat16()) : f(0.0f);
}

// f(place, count) for the places of `size` numbers, a pair at a time; the last may be less.
template <typename F>
inline void by_pairs(int64_t size, F f) {
  for (int64_t place = 0; place < size; place += PAIR) f(place, std::min(PAIR, size - place));
}

}  // namespace
