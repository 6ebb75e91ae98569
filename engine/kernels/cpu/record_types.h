// The types of blocks in GGUF files, as records of 32 rows: engine/quant/gguf.py has the layout.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <type_traits>

#include "panels.h"

namespace {

constexpr int64_t ROWS = WIDTH / 4;    // of a panel in a vector
constexpr int64_t HALVES = 2 * PANEL;  // bytes of a float16 field of a record

// A record is the same block of 32 rows: one or two float16 fields, with a number of each row; 8-bit scales of each group,
// then minima; and lines with four bytes of codes of each row.
//
// A product goes through the codes of a block in sections, and through a section in steps. A step takes one or more lines
// apart (`split`) into SPLITS vectors of 8-bit codes; vector i has four columns of each row, from `column(section, step, i)`
// on, and is added to sum i % SUMS of the section, which has the scale of `group(section, i)`. In Q4_K, for example, a
// section is 64 columns in 8 steps; in each, the lower halves of a line are four columns of one group, the upper halves
// four of the next, so it has two sums.
struct Q4_0 {
  static constexpr int KIND = 2;                                       // its number in GGUF files
  static constexpr int COLUMNS = 32, GROUP = 32, FLOATS = 1, LINES = 4;  // of a block: columns, columns of a group; float16 fields, lines
  static constexpr int SECTIONS = 1, STEPS = 4, SPLITS = 2, SUMS = 1;  // as above
  static constexpr int ZERO = 8;                                       // the code of zero
  static constexpr float SIGN = 1.0f;                                  // of the minimum in d code + m
  static constexpr bool SCALED = false, MINIMUM = false;  // whether groups have 8-bit scales; whether there is a minimum
  using Scale = uint8_t;
  static constexpr int column(int, int step, int i) { return 16 * i + 4 * step; }
  static constexpr int group(int, int) { return 0; }
  template <typename V, typename F>
  static void split(F line, int, int step, V (&codes)[SPLITS]) {
    const V bytes = line(step);
    codes[0] = bytes & 0x0f0f, codes[1] = bytes >> 4 & 0x0f0f;
  }
};

struct Q4_1 : Q4_0 {
  static constexpr int KIND = 3, FLOATS = 2, ZERO = 0;
  static constexpr bool MINIMUM = true;
};

struct Q4_K : Q4_0 {
  static constexpr int KIND = 12, COLUMNS = 256, FLOATS = 2, SECTIONS = 4, STEPS = 8, SUMS = 2, ZERO = 0, LINES = 32;
  static constexpr float SIGN = -1.0f;
  static constexpr bool SCALED = true, MINIMUM = true;
  static constexpr int column(int section, int step, int i) { return 64 * section + 32 * i + 4 * step; }
  static constexpr int group(int section, int i) { return 2 * section + i; }
  template <typename V, typename F>
  static void split(F line, int section, int step, V (&codes)[SPLITS]) {
    Q4_0::split(line, 0, 8 * section + step, codes);
  }
};

struct Q5_K : Q4_K {
  static constexpr int KIND = 13, LINES = 40;  // the first 8 have a fifth bit of each group
  template <typename V, typename F>
  static void split(F line, int section, int step, V (&codes)[SPLITS]) {
    Q4_K::split([&](int i) { return line(8 + i); }, section, step, codes);
    const V bits = line(step) >> 2 * section;
    codes[0] |= (bits & 0x0101) << 4, codes[1] |= (bits & 0x0202) << 3;
  }
};

struct Q6_K : Q4_0 {
  static constexpr int KIND = 14, COLUMNS = 256, GROUP = 16, SECTIONS = 4, SPLITS = 4, SUMS = 4, ZERO = 32, LINES = 48;  // the last 16: two bits
  static constexpr bool SCALED = true;
  using Scale = int8_t;
  static constexpr int column(int section, int step, int i) { return 128 * (section / 2) + 16 * (section % 2) + 32 * i + 4 * step; }
  static constexpr int group(int section, int i) { return 8 * (section / 2) + section % 2 + 2 * i; }
  template <typename V, typename F>
  static void split(F line, int section, int step, V (&codes)[SPLITS]) {
    const int half = section / 2, index = 4 * (section % 2) + step;
    const V first = line(16 * half + index), second = line(16 * half + 8 + index), bits = line(32 + 8 * half + index);
    codes[0] = (first & 0x0f0f) | (bits << 4 & 0x3030), codes[1] = (second & 0x0f0f) | (bits << 2 & 0x3030);
    codes[2] = (first >> 4 & 0x0f0f) | (bits & 0x3030), codes[3] = (second >> 4 & 0x0f0f) | (bits >> 2 & 0x3030);
  }
};

struct Q8_0 : Q4_0 {
  static constexpr int KIND = 8, LINES = 8;  // codes of 8 bits with a sign: `split` is not used
};

template <typename Type>
constexpr int64_t SCALES = Type::SCALED ? Type::COLUMNS / Type::GROUP : 0;  // of a block
template <typename Type>
constexpr int64_t CODES = HALVES * Type::FLOATS + PANEL * SCALES<Type> * (Type::SCALED && Type::MINIMUM ? 2 : 1);  // where codes begin in a record
template <typename Type>
constexpr int64_t RECORD = CODES<Type> + LINE * Type::LINES;  // bytes

// Call f with the type of this number in GGUF files.
template <typename F>
void with_kind(int64_t kind, F f) {
  switch (kind) {
    case Q4_0::KIND: return f(Q4_0());
    case Q4_1::KIND: return f(Q4_1());
    case Q4_K::KIND: return f(Q4_K());
    case Q5_K::KIND: return f(Q5_K());
    case Q6_K::KIND: return f(Q6_K());
    case Q8_0::KIND: return f(Q8_0());
    default: TORCH_CHECK(false, "records: type ", kind);
  }
}

inline float from_half(const uint8_t* address) {
  uint16_t bits;
  std::memcpy(&bits, address, sizeof bits);
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#else
  return static_cast<float>(at::Half(bits, at::Half::from_bits()));
#endif
}

// One float16 number of each row of a vector.
inline Floats load_halves(const uint8_t* address) {
#if defined(CPU_CAPABILITY_AVX512)
  return (Floats)_mm512_cvtph_ps(load_bytes<__m256i>(address));
#elif defined(CPU_CAPABILITY_AVX2)
  return (Floats)_mm256_cvtph_ps(load_bytes<__m128i>(address));
#else
  Floats numbers;
  for (int64_t i = 0; i < ROWS; i++) numbers[i] = from_half(address + 2 * i);
  return numbers;
#endif
}

// One byte of each row of a vector, with or without a sign.
template <typename S>
inline Floats load_small(const uint8_t* address) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = load_bytes<__m128i>(address);
  return to_floats((Sums)(std::is_signed_v<S> ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes)));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(address));
  return to_floats((Sums)(std::is_signed_v<S> ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)));
#else
  Floats numbers;
  for (int64_t i = 0; i < ROWS; i++) numbers[i] = static_cast<float>(static_cast<S>(address[i]));
  return numbers;
#endif
}

}  // namespace
