// Weights in panels whose 4-bit codes stand for the 16 numbers of a table in [-1, 1] (nf4, fp4), with a float32 scale per
// 64 columns of a row. The layout is that of 4-bit panels; the scales are followed by the table.
//
// The numbers are looked up as integers of two bytes, each of which is multiplied as codes are, so that the products and
// sums of a group of x are exact. They are rounded to 1/32767, finer than x by far; without VNNI to 1/8191, because the
// instruction that multiplies bytes there saturates unless one factor has at most 7 bits.
#pragma once

#include <cmath>
#include <cstring>

#include "panels.h"

namespace {

#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512VNNI__)
constexpr int HALF_BITS = 8;  // of a looked up integer
#else
constexpr int HALF_BITS = 7;
#endif
constexpr int32_t ZERO = 1 << (2 * HALF_BITS - 1);  // the integer of the number 0

// The bytes of a table at the codes, each below 16. The table is repeated in every 16 bytes.
inline Words lookup(Words table, Words codes) {
#if defined(CPU_CAPABILITY_AVX512)
  return (Words)_mm512_shuffle_epi8((__m512i)table, (__m512i)codes);
#elif defined(CPU_CAPABILITY_AVX2)
  return (Words)_mm256_shuffle_epi8((__m256i)table, (__m256i)codes);
#else
  uint8_t numbers[WIDTH], indices[WIDTH], bytes[WIDTH];
  std::memcpy(numbers, &table, WIDTH);
  std::memcpy(indices, &codes, WIDTH);
  for (int64_t i = 0; i < WIDTH; i++) bytes[i] = numbers[indices[i]];
  return load_bytes<Words>(bytes);
#endif
}

struct Tables {
  const Panels& weight;
  Words high, low;  // the two halves of the table's integers

  explicit Tables(const Panels& weight) : weight(weight) {
    uint8_t bytes[2][WIDTH];
    for (int64_t i = 0; i < WIDTH; i++) {
      const auto number = static_cast<int32_t>(std::lrint(weight.table[i % 16] * (ZERO - 1))) + ZERO;
      bytes[0][i] = static_cast<uint8_t>(number >> HALF_BITS), bytes[1][i] = static_cast<uint8_t>(number & ((1 << HALF_BITS) - 1));
    }
    high = load_bytes<Words>(bytes[0]), low = load_bytes<Words>(bytes[1]);
  }

  // Products of M rows of x with the 32 rows of a panel, as Panels::panel.
  template <int M>
  __attribute__((noinline)) void panel(int64_t panel, const QuantizedX8<32>& x, int64_t row, Floats (&out)[M][PARTS]) const {
    constexpr int STRIP = M <= 2 ? 2 : 1;
    constexpr int64_t GROUP = 32;  // of x
    const int64_t groups = weight.k / GROUP, scaled = weight.group / GROUP;
    const float* scales = static_cast<const float*>(weight.scales) + panel * (groups / scaled) * PANEL;
    for (int64_t group = 0; group < groups; group++) {
      const uint8_t* stream = weight.codes + panel * weight.bytes() + group * GROUP * PANEL / 2;
      for (int strip = 0; strip < PARTS; strip += STRIP) {
        Sums upper[M][STRIP] = {}, lower[M][STRIP] = {};
        for (int m = 0; m < M; m++)
          for (int part = 0; part < STRIP; part++) lower[m][part] += x.offsets[(row + m) * groups + group] * static_cast<int32_t>(ZERO / ZERO_CODE);
        for (int64_t column = 0; column < GROUP; column += 8) {
          Words first[M], second[M];
          for (int m = 0; m < M; m++) first[m] = x.quad(row + m, group * GROUP + column), second[m] = x.quad(row + m, group * GROUP + column + 4);
          for (int part = 0; part < STRIP; part++) {
            const Words bytes_of_part = line_part(stream + column * PANEL / 2, strip + part);
            const Words halves[2] = {bytes_of_part & 0x0f0f, (Words)((Unsigned)bytes_of_part >> 4) & 0x0f0f};
            const Words numbers[4] = {lookup(high, halves[0]), lookup(low, halves[0]), lookup(high, halves[1]), lookup(low, halves[1])};
            for (int m = 0; m < M; m++) {
              upper[m][part] = dot_quads(dot_quads(upper[m][part], numbers[0], first[m]), numbers[2], second[m]);
              lower[m][part] = dot_quads(dot_quads(lower[m][part], numbers[1], first[m]), numbers[3], second[m]);
            }
          }
        }
        for (int part = 0; part < STRIP; part++) {
          const Floats scale = load_bytes<Floats>(scales + group / scaled * PANEL + (strip + part) * (PANEL / PARTS));
          for (int m = 0; m < M; m++) out[m][strip + part] += scale * (x.scales[(row + m) * groups + group] / (ZERO - 1)) * to_floats((upper[m][part] << HALF_BITS) + lower[m][part]);
        }
      }
    }
  }
};

}  // namespace
