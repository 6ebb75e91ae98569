// Numbers into panels of 8 and 4 bits, and back: as engine/formats/panels.py does it.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "panels.h"
#include "vectors.h"

namespace {

// A row [k] -> its codes in a panel and its scale: as quantize8 and quantize4 in engine/formats/panels.py.
inline void quantize_row8(const float* x, int64_t k, uint8_t* to, float* scale) {
  *scale = most_of(x, k) / 127.0f;
  const Vec inverse(*scale == 0.0f ? 0.0f : 1.0f / *scale);
  by_pairs(k, [&](int64_t place, int64_t count) {
    const Pair part = load(x + place, count);
    int32_t codes[PAIR];
    at::vec::convert_to_int_of_same_size((part.low * inverse).round()).store(codes);
    at::vec::convert_to_int_of_same_size((part.high * inverse).round()).store(codes + LANES);
    for (int64_t i = 0; i < count; i += 4) {
      const int8_t bytes[4] = {static_cast<int8_t>(codes[i]), static_cast<int8_t>(codes[i + 2]), static_cast<int8_t>(codes[i + 1]), static_cast<int8_t>(codes[i + 3])};
      std::memcpy(to + (place + i) / 4 * LINE, bytes, 4);
    }
  });
}

constexpr float SHRUNK[] = {1.0f, 0.95f, 0.9f, 0.85f};

template <int GROUP>
__attribute__((noinline)) void quantize_row4(const float* x, int64_t k, uint8_t* to, BFloat16* scales) {
  const Vec lowest(-8.0f), highest(7.0f);
  for (int64_t group = 0; group < k / GROUP; group++) {
    const float* from = x + group * GROUP;
    float low = from[0], high = from[0], least = std::numeric_limits<float>::infinity();
    for (int64_t i = 1; i < GROUP; i++) low = std::min(low, from[i]), high = std::max(high, from[i]);
    int32_t best[GROUP] = {}, codes[GROUP];
    scales[group * PANEL] = std::numeric_limits<float>::quiet_NaN();  // unless they are numbers
    for (int tried = 0; tried < 8; tried++) {
      const BFloat16 scale((high > -low ? high : low) * (SHRUNK[tried / 2] / (tried % 2 ? 7.0f : -8.0f)));
      const float wide = scale;
      const Vec step(wide), inverse(wide == 0.0f ? 0.0f : 1.0f / wide);
      Vec errors(0.0f);
      for (int64_t i = 0; i < GROUP; i += LANES) {
        const Vec numbers = Vec::loadu(from + i), rounded = at::vec::minimum(at::vec::maximum((numbers * inverse).round(), lowest), highest);
        const Vec error = numbers - rounded * step;
        errors = at::vec::fmadd(error, error, errors);
        at::vec::convert_to_int_of_same_size(rounded).store(codes + i);
      }
      const float total = sum(errors);
      if (total < least) {
        least = total;
        scales[group * PANEL] = scale;
        std::copy(codes, codes + GROUP, best);
      }
    }
    for (int64_t i = 0; i < GROUP; i += 8) {
      uint8_t bytes[4];
      for (int j = 0; j < 4; j++) bytes[j] = static_cast<uint8_t>((best[i + j] + MIDDLE) | (best[i + 4 + j] + MIDDLE) << 4);
      std::memcpy(to + (group * GROUP + i) / 8 * LINE, bytes, 4);
    }
  }
}

// part [count, k] (float32) becomes the rows of a weight from `first` on, which begins a panel.
void quantize(const at::Tensor& part, const at::Tensor& weight, const at::Tensor& scales, int64_t first) {
  const Panels to = panels(weight, scales);
  TORCH_CHECK(part.dim() == 2 && part.is_contiguous() && part.scalar_type() == at::kFloat && part.size(1) == to.k, "quantize: ", part.sizes());
  TORCH_CHECK(0 <= first && first % PANEL == 0 && first + part.size(0) <= to.n, "quantize: ", part.sizes(), " from row ", first, " of ", to.n);
  const int64_t rows = part.size(0);
  const float* x = part.const_data_ptr<float>();
  uint8_t* codes = static_cast<uint8_t*>(weight.mutable_data_ptr());
  at::parallel_for(0, (rows + PANEL - 1) / PANEL, 1, [&](int64_t panel, int64_t end) {
    for (; panel < end; panel++) {
      const int64_t own = first / PANEL + panel, begin = panel * PANEL;
      uint8_t* at = codes + own * to.bytes();
      std::memset(at, 0, to.bytes());
      for (int64_t row = begin; row < std::min(rows, begin + PANEL); row++, at += 4) {
        if (to.bits == 8) quantize_row8(x + row * to.k, to.k, at, scales.mutable_data_ptr<float>() + first + row);
        else {
          BFloat16* scale = scales.mutable_data_ptr<BFloat16>() + own * (to.k / to.group) * PANEL + row - begin;
          to.group == 16 ? quantize_row4<16>(x + row * to.k, to.k, at, scale) : quantize_row4<32>(x + row * to.k, to.k, at, scale);
        }
      }
    }
  });
}

// 16 rows of half of 16 lines: 16 of 32 bits in each, turned into its columns.
#if defined(CPU_CAPABILITY_AVX512)
inline void turn(const uint8_t* from, int32_t (&to)[16][16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * LINE);
  for (int i = 0; i < 16; i += 2) b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]), a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88), b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
  for (int j = 0; j < 8; j++) {
    _mm512_storeu_si512(to[j], _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
    _mm512_storeu_si512(to[j + 8], _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
  }
}
#else
inline void turn(const uint8_t* from, int32_t (&to)[16][16]) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) std::memcpy(&to[j][i], from + i * LINE + j * 4, 4);
}
#endif

// A row's part of 16 lines -> its codes in the order of the columns, less the one that stands for zero.
inline void in_order(const int32_t (&row)[16], int bits, int8_t (&codes)[128]) {
  int32_t four[32];
  if (bits == 8) {
    for (int i = 0; i < 16; i++) four[i] = (row[i] & 0xff0000ff) | (row[i] & 0xff00) << 8 | (row[i] >> 8 & 0xff00);
    std::memcpy(codes, four, 64);
    return;
  }
  for (int i = 0; i < 16; i++) {
    four[2 * i] = row[i] & 0x0f0f0f0f;
    four[2 * i + 1] = row[i] >> 4 & 0x0f0f0f0f;
  }
  std::memcpy(codes, four, 128);
  for (int8_t& code : codes) code -= MIDDLE;
}

// A panel's rows as numbers: y [32, k].
template <typename T>
void dequantize_panel(const Panels& weight, int64_t panel, T* y) {
  const int64_t k = weight.k, columns = weight.bits == 8 ? 4 : 8, lines = k / columns, rows = std::min(PANEL, weight.n - panel * PANEL);
  const uint8_t* from = weight.codes + panel * weight.bytes();
  for (int64_t line = 0; line < lines; line += 16) {
    const int64_t count = std::min<int64_t>(16, lines - line);
    uint8_t room[16 * LINE];
    if (count < 16) std::memcpy(room, from + line * LINE, count * LINE);
    int32_t turned[16][16];
    for (int64_t row = 0; row < rows; row++) {
      if (row % 16 == 0) turn((count < 16 ? room : from + line * LINE) + row * 4, turned);
      int8_t codes[128];
      in_order(turned[row % 16], weight.bits, codes);
      float numbers[128];
      const int64_t first = line * columns, all = count * columns, step = weight.bits == 8 ? 64 : weight.group;
      for (int64_t place = 0; place < all; place += step) {
        const int64_t group = (panel * (k / step) + (first + place) / step) * PANEL + row;
        const float scale = weight.bits == 8 ? static_cast<const float*>(weight.scales)[panel * PANEL + row] : static_cast<float>(static_cast<const BFloat16*>(weight.scales)[group]);
        for (int64_t i = 0; i < step; i += 16)
          for (int j = 0; j < 16; j++) numbers[place + i + j] = codes[place + i + j] * scale;
      }
      for (int64_t i = 0; i < all; i += PAIR) store(y + row * k + first + i, load(numbers + i), std::min(PAIR, all - i));
    }
  }
}

// Rows first to last of a weight, the first a panel's -> [last - first, k], of `like`'s dtype.
at::Tensor dequantize(const at::Tensor& weight, const at::Tensor& scales, int64_t first, int64_t last, const at::Tensor& like) {
  const Panels from = panels(weight, scales);
  TORCH_CHECK(0 <= first && first % PANEL == 0 && first < last && last <= from.n, "dequantize: rows ", first, " to ", last, " of ", from.n);
  at::Tensor y = at::empty({(last + PANEL - 1) / PANEL * PANEL - first, from.k}, like.options());
  by_type(like, [&](auto zero) {
    using T = decltype(zero);
    T* to = y.mutable_data_ptr<T>();
    at::parallel_for(first / PANEL, (last + PANEL - 1) / PANEL, 1, [&](int64_t panel, int64_t end) {
      for (; panel < end; panel++) dequantize_panel(from, panel, to + (panel * PANEL - first) * from.k);
    });
  });
  return y.narrow(0, 0, last - first);
}

}  // namespace
