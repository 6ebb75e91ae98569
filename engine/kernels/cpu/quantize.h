// Quantize rows into panels of 8 and 4 bits, and dequantize them, as engine/quant/panels.py; dequantize tables.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "panels.h"
#include "record_types.h"
#include "vectors.h"

namespace {

// 1 / scale, or 0 if that overflows or the scale is 0.
inline float inverse_of(float scale) {
  return std::abs(scale) < std::numeric_limits<float>::min() ? 0.0f : 1.0f / scale;
}

// Quantize a row [k] into its codes in a panel and its scale, as quantize8 and quantize4 in engine/quant/panels.py.
inline void quantize_row8(const float* x, int64_t k, uint8_t* out, float* scale) {
  *scale = max_abs(x, k) / 127.0f;
  const Vec inverse(inverse_of(*scale));
  for_pairs(k, [&](int64_t first, int64_t count) {
    const Pair part = load(x + first, count);
    int32_t codes[PAIR];
    at::vec::convert_to_int_of_same_size((part.low * inverse).round()).store(codes);
    at::vec::convert_to_int_of_same_size((part.high * inverse).round()).store(codes + LANES);
    for (int64_t i = 0; i < count; i += 4) {
      const int8_t bytes[4] = {static_cast<int8_t>(codes[i]), static_cast<int8_t>(codes[i + 2]), static_cast<int8_t>(codes[i + 1]), static_cast<int8_t>(codes[i + 3])};
      std::memcpy(out + (first + i) / 4 * LINE, bytes, 4);
    }
  });
}

// As in engine/quant/panels.py, where they are explained.
constexpr float LARGEST_CODES[] = {-8.6f, -8.4f, -8.2f, -8.0f, -7.8f, -7.2f, -7.0f, 6.0f};

template <int GROUP>
__attribute__((noinline)) void quantize_row4(const float* x, int64_t k, uint8_t* out, BFloat16* scales) {
  const Vec lowest(-8.0f), highest(7.0f);
  for (int64_t group = 0; group < k / GROUP; group++) {
    const float* weights = x + group * GROUP;
    float low = weights[0], high = weights[0], best_error = std::numeric_limits<float>::infinity();
    for (int64_t i = 1; i < GROUP; i++) low = std::min(low, weights[i]), high = std::max(high, weights[i]);
    float best[GROUP] = {}, codes[GROUP];
    scales[group * PANEL] = std::numeric_limits<float>::quiet_NaN();  // stays if a weight is NaN
    const auto consider = [&](const BFloat16 scale) {
      const float wide = scale;
      const Vec step(wide), inverse(inverse_of(wide));
      Vec errors(0.0f);
      for (int64_t i = 0; i < GROUP; i += LANES) {
        const Vec numbers = Vec::loadu(weights + i), rounded = at::vec::minimum(at::vec::maximum((numbers * inverse).round(), lowest), highest);
        const Vec error = numbers - rounded * step;
        errors = at::vec::fmadd(error, error, errors);
        rounded.store(codes + i);
      }
      const float total = sum(errors);
      if (total < best_error) {
        best_error = total;
        scales[group * PANEL] = scale;
        std::copy(codes, codes + GROUP, best);
      }
    };
    for (const float code : LARGEST_CODES) consider(BFloat16((high > -low ? high : low) / code));
    Vec products(0.0f), squares(0.0f);
    for (int64_t i = 0; i < GROUP; i += LANES) {
      const Vec rounded = Vec::loadu(best + i);
      products = at::vec::fmadd(Vec::loadu(weights + i), rounded, products);
      squares = at::vec::fmadd(rounded, rounded, squares);
    }
    consider(BFloat16(sum(products) / sum(squares)));
    for (int64_t i = 0; i < GROUP; i += 8) {
      uint8_t bytes[4];
      for (int j = 0; j < 4; j++) bytes[j] = static_cast<uint8_t>((static_cast<int>(best[i + j]) + ZERO_CODE) | (static_cast<int>(best[i + 4 + j]) + ZERO_CODE) << 4);
      std::memcpy(out + (group * GROUP + i) / 8 * LINE, bytes, 4);
    }
  }
}

// Quantize part [count, k] (float32) into rows `first`, the first row of a panel, and following.
void quantize(const at::Tensor& part, const at::Tensor& weight, const at::Tensor& scales, int64_t first) {
  const Panels panel_weight = panels(weight, scales);
  TORCH_CHECK(panel_weight.table == nullptr, "quantize: not to the numbers of a table");
  TORCH_CHECK(part.dim() == 2 && part.is_contiguous() && part.scalar_type() == at::kFloat && part.size(1) == panel_weight.k, "quantize: ", part.sizes());
  TORCH_CHECK(0 <= first && first % PANEL == 0 && first + part.size(0) <= panel_weight.n, "quantize: ", part.sizes(), " from row ", first, " of ", panel_weight.n);
  const int64_t rows = part.size(0);
  const float* x = part.const_data_ptr<float>();
  uint8_t* codes = static_cast<uint8_t*>(weight.mutable_data_ptr());
  // By torch's threads, as these run between torch's operators; two sets of threads would disturb each other.
  at::parallel_for(0, (rows + PANEL - 1) / PANEL, 1, [&](int64_t panel, int64_t end) {
    for (; panel < end; panel++) {
      const int64_t index = first / PANEL + panel, begin = panel * PANEL;
      uint8_t* out = codes + index * panel_weight.bytes();
      std::memset(out, 0, panel_weight.bytes());
      for (int64_t row = begin; row < std::min(rows, begin + PANEL); row++, out += 4) {
        if (panel_weight.bits == 8) quantize_row8(x + row * panel_weight.k, panel_weight.k, out, scales.mutable_data_ptr<float>() + first + row);
        else {
          BFloat16* scale = scales.mutable_data_ptr<BFloat16>() + index * (panel_weight.k / panel_weight.group) * PANEL + row - begin;
          panel_weight.group == 16 ? quantize_row4<16>(x + row * panel_weight.k, panel_weight.k, out, scale) : quantize_row4<32>(x + row * panel_weight.k, panel_weight.k, out, scale);
        }
      }
    }
  });
}

// Transpose 16 lines of 16 rows (32 bits each): -> 16 rows of 16 lines.
#if defined(CPU_CAPABILITY_AVX512)
inline void transpose(const uint8_t* lines, int32_t (&rows)[16][16]) {
  __m512i words[16];
  for (int i = 0; i < 16; i++) words[i] = _mm512_loadu_si512(lines + i * LINE);
  transpose_words(words);
  std::memcpy(rows, words, sizeof rows);
}
#else
inline void transpose(const uint8_t* lines, int32_t (&rows)[16][16]) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) std::memcpy(&rows[j][i], lines + i * LINE + j * 4, 4);
}
#endif

// 16 bytes of a row, of four neighbouring lines -> its codes of 16 columns, in 4 bits of 32.
template <int BITS>
inline void unpack_codes(const int32_t* row, uint8_t* codes) {
  typedef int32_t Quad __attribute__((vector_size(16)));
  const Quad bytes = load_bytes<Quad>(row);
  if constexpr (BITS == 8) {
    const Quad words = (bytes & static_cast<int32_t>(0xff0000ff)) | (bytes & 0xff00) << 8 | (bytes >> 8 & 0xff00);
    store_bytes(codes, words);
  } else {
    const Quad low = bytes & 0x0f0f0f0f, high = bytes >> 4 & 0x0f0f0f0f;
    store_bytes(codes, __builtin_shufflevector(low, high, 0, 4, 1, 5));
    store_bytes(codes + 16, __builtin_shufflevector(low, high, 2, 6, 3, 7));
  }
}

// Dequantize up to 16 rows of a matrix from `row`, a multiple of 16, on, and of them columns `first`, a multiple of 128, to
// `last` -> y, with rows `stride` apart. STEP columns have the same scale. `scaled`: else the integers of 8 bits
// themselves, which are exact in every type.
template <int BITS, int STEP, typename T>
__attribute__((noinline)) void dequantize_rows(const Panels& weight, int64_t row, int64_t rows, int64_t first, int64_t last, T* y, int64_t stride, bool scaled) {
  constexpr int64_t COLUMNS = 32 / BITS, ALL = 16 * COLUMNS;  // of a line, and of the lines that are transposed
  const int64_t panel = row / PANEL, of_panel = row % PANEL;
  const uint8_t* lines = weight.codes + panel * weight.bytes() + first / COLUMNS * LINE;
  for (int64_t column = first; column < last; column += ALL, lines += 16 * LINE) {
    const int64_t total = std::min(ALL, last - column);
    uint8_t buffer[16 * LINE];
    if (total < ALL) std::memcpy(buffer, lines, total / COLUMNS * LINE);
    int32_t transposed[16][16];
    transpose((total < ALL ? buffer : lines) + of_panel * 4, transposed);
    for (int64_t i = 0; i < rows; i++) {
      uint8_t codes[ALL];
      for (int64_t j = 0; j < 16; j += 4) unpack_codes<BITS>(transposed[i] + j, codes + j * COLUMNS);
      float numbers[ALL];
      for (int64_t begin = 0; begin < total; begin += STEP) {
        const int64_t group = BITS == 8 ? row + i : (panel * (weight.k / STEP) + (column + begin) / STEP) * PANEL + of_panel + i;
        const bool wide = BITS == 8 || STEP == 64;
        const float scale = !scaled ? 1.0f : wide ? static_cast<const float*>(weight.scales)[group] : static_cast<float>(static_cast<const BFloat16*>(weight.scales)[group]);
        if constexpr (BITS == 4 && STEP == 64)
          for (int64_t j = begin; j < begin + STEP; j++) numbers[j] = weight.table[codes[j]] * scale;
        else
          for (int64_t j = begin; j < begin + STEP; j += ROWS) store_bytes(numbers + j, (BITS == 8 ? load_small<int8_t>(codes + j) : load_small<uint8_t>(codes + j) - static_cast<float>(ZERO_CODE)) * scale);
      }
      for (int64_t j = 0; j < total; j += PAIR) store(y + i * stride + column - first + j, load(numbers + j), std::min(PAIR, total - j));
    }
  }
}

template <typename T>
void dequantize_rows(const Panels& weight, int64_t row, int64_t rows, int64_t first, int64_t last, T* y, int64_t stride, bool scaled = true) {
  if (weight.bits == 8) dequantize_rows<8, 64>(weight, row, rows, first, last, y, stride, scaled);
  else if (weight.group == 16) dequantize_rows<4, 16>(weight, row, rows, first, last, y, stride, scaled);
  else if (weight.group == 32) dequantize_rows<4, 32>(weight, row, rows, first, last, y, stride, scaled);
  else dequantize_rows<4, 64>(weight, row, rows, first, last, y, stride, scaled);
}

// Dequantize rows `first`, the first row of a panel, to `last` -> [last - first, k], in the dtype of `like`.
at::Tensor dequantize(const at::Tensor& weight, const at::Tensor& scales, int64_t first, int64_t last, const at::Tensor& like) {
  const Panels panel_weight = panels(weight, scales);
  const int64_t k = panel_weight.k;
  TORCH_CHECK(0 <= first && first % PANEL == 0 && first < last && last <= panel_weight.n, "dequantize: rows ", first, " to ", last, " of ", panel_weight.n);
  at::Tensor y = at::empty({last - first, k}, like.options());
  dispatch_type(like, [&](auto zero) {
    using T = decltype(zero);
    T* out = y.mutable_data_ptr<T>();
    at::parallel_for(0, (last - first + 15) / 16, 2, [&](int64_t part, int64_t end) {
      for (; part < end; part++) dequantize_rows(panel_weight, first + 16 * part, std::min<int64_t>(16, last - first - 16 * part), 0, k, out + 16 * part * k, k);
    });
  });
  return y;
}

}  // namespace
