// Weights in the blocks of a GGUF file, in the layout of engine/quant/gguf.py: panels of 32 rows as in panels.h, each a
// stream of records.
//
// The weights are exactly the file's numbers. x is quantized to integers, so that the products and sums of a group are
// exact.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "panels.h"
#include "parallel.h"
#include "record_types.h"
#include "vectors.h"

namespace {

// Rows of x as 16-bit integers, 256 high + low, with a scale per group, and the sums of the groups. Products take twice the
// instructions of 8 bits, and one row still waits for the memory; so texts are those of the dequantized weights.
template <int GROUP>
struct SplitX16 {
  int64_t k;
  std::vector<int8_t> high, low;     // [rows, k]
  std::vector<float> scales, sums;   // [rows, k / GROUP]
  std::vector<int32_t> totals;       // [rows, k / GROUP]: the sums as integers

  template <typename T>
  SplitX16(const T* x, int64_t stride, int64_t rows, int64_t k) : k(k), high(rows * k), low(rows * k), scales(rows * k / GROUP), sums(scales.size()), totals(scales.size()) {
    constexpr float LIMIT = 127 * 256 + 127;
    for (size_t group = 0; group < scales.size(); group++) {
      const int64_t first = group * GROUP;
      const T* numbers = x + first / k * stride + first % k;
      const float largest = max_abs(numbers, GROUP);
      int16_t codes[GROUP];
      scales[group] = scale_for(largest, LIMIT);
      quantize_to(numbers, GROUP, inverse_scale(largest, LIMIT), codes);
      for (int i = 0; i < GROUP; i++) {
        low[first + i] = static_cast<int8_t>(codes[i] & 0xff);
        high[first + i] = static_cast<int8_t>((codes[i] - low[first + i]) / 256);
        totals[group] += codes[i];
      }
      sums[group] = scales[group] * static_cast<float>(totals[group]);
    }
  }

  // Four neighbouring columns, in every lane.
  Words quad(const std::vector<int8_t>& codes, int64_t row, int64_t column) const {
    return in_every_lane(codes.data() + row * k + column);
  }
};

// For Q8_0: 16-bit integers, as for panels of 8 bits. A line's even bytes are columns 0 and 2, its odd bytes 1 and 3.
struct SwappedX16 : QuantizedX16 {
  template <typename T>
  SwappedX16(const T* x, int64_t stride, int64_t rows, int64_t k) : QuantizedX16(x, stride, rows, k) {
    for (size_t i = 0; i < codes.size(); i += 4) std::swap(codes[i + 1], codes[i + 2]);
  }
};

// Products of M rows of x with the 32 rows of a panel. STRIP vectors at a time, so that their sums stay in registers.
template <typename Type, int M>
__attribute__((noinline)) void record_products(const uint8_t* record, const SplitX16<Type::GROUP>& x, int64_t row, Floats (&out)[M][PARTS]) {
  constexpr int STRIP = M <= 2 && Type::SUMS <= 2 ? 2 : 1;
  const int64_t groups = x.k / Type::GROUP;
  for (int64_t begin = 0; begin < x.k; begin += Type::COLUMNS, record += RECORD<Type>)
    for (int strip = 0; strip < PARTS; strip += STRIP) {
      const uint8_t* scales = record + HALVES * Type::FLOATS + strip * ROWS;
      Floats scaled[M][STRIP] = {}, minima[M][STRIP] = {};
      for (int section = 0; section < Type::SECTIONS; section++) {
        const auto x_group = [&](int m, int i) { return (row + m) * groups + begin / Type::GROUP + Type::group(section, i); };
        Sums upper[Type::SUMS][M][STRIP] = {}, lower[Type::SUMS][M][STRIP] = {};
        for (int i = 0; i < Type::SUMS; i++)
          for (int m = 0; m < M && Type::ZERO > 0; m++)
            for (int part = 0; part < STRIP; part++) lower[i][m][part] -= x.totals[x_group(m, i)] * Type::ZERO;
        for (int step = 0; step < Type::STEPS; step++)
          for (int part = 0; part < STRIP; part++) {
            Words codes[Type::SPLITS];
            Type::split([&](int line) { return line_part(record + CODES<Type> + line * LINE, strip + part); }, section, step, codes);
            for (int i = 0; i < Type::SPLITS; i++)
              for (int m = 0; m < M; m++) {
                const int sum = i % Type::SUMS;
                const int64_t column = begin + Type::column(section, step, i);
                upper[sum][m][part] = dot_quads(upper[sum][m][part], codes[i], x.quad(x.high, row + m, column));
                lower[sum][m][part] = dot_quads(lower[sum][m][part], codes[i], x.quad(x.low, row + m, column));
              }
          }
        for (int i = 0; i < Type::SUMS; i++)
          for (int part = 0; part < STRIP; part++) {
            const uint8_t* scale = scales + Type::group(section, i) * PANEL + part * ROWS;
            for (int m = 0; m < M; m++) {
              const int64_t group = x_group(m, i);
              Floats number = to_floats((upper[i][m][part] << 8) + lower[i][m][part]);
              if constexpr (Type::SCALED) number *= load_small<typename Type::Scale>(scale);
              scaled[m][part] += number * x.scales[group];
              if constexpr (Type::SCALED && Type::MINIMUM) minima[m][part] += load_small<uint8_t>(scale + SCALES<Type> * PANEL) * x.sums[group];
              else if constexpr (Type::MINIMUM) minima[m][part] += x.sums[group];
            }
          }
      }
      for (int part = 0; part < STRIP; part++) {
        const uint8_t* halves = record + 2 * (strip + part) * ROWS;
        for (int m = 0; m < M; m++) {
          out[m][strip + part] += load_halves(halves) * scaled[m][part];
          if constexpr (Type::MINIMUM) out[m][strip + part] += Type::SIGN * load_halves(halves + HALVES) * minima[m][part];
        }
      }
    }
}

template <typename Type, int M>
__attribute__((noinline)) void record_products(const uint8_t* record, const SwappedX16& x, int64_t row, Floats (&out)[M][PARTS]) {
  constexpr int STRIP = M <= 2 ? 2 : 1;
  for (int64_t begin = 0; begin < x.k; begin += Q8_0::COLUMNS, record += RECORD<Q8_0>)
    for (int strip = 0; strip < PARTS; strip += STRIP) {
      Sums even[M][STRIP] = {}, odd[M][STRIP] = {};
      for (int step = 0; step < Q8_0::LINES; step++)
        for (int part = 0; part < STRIP; part++) {
          const Words codes = line_part(record + CODES<Q8_0> + step * LINE, strip + part);
          for (int m = 0; m < M; m++) {
            even[m][part] = dot_pairs(even[m][part], codes << 8 >> 8, x.pair(row + m, begin + 4 * step));
            odd[m][part] = dot_pairs(odd[m][part], codes >> 8, x.pair(row + m, begin + 4 * step + 2));
          }
        }
      for (int part = 0; part < STRIP; part++)
        for (int m = 0; m < M; m++) out[m][strip + part] += load_halves(record + 2 * (strip + part) * ROWS) * to_floats(even[m][part] + odd[m][part]);
    }
  for (int m = 0; m < M; m++)
    for (int part = 0; part < PARTS; part++) out[m][part] *= x.scales[row + m];
}

// Dequantize the block of one row -> out [COLUMNS].
template <typename Type>
void decode(const uint8_t* record, int64_t row, float* out) {
  typedef int16_t Quads __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  // The row's codes of four lines. Loads of a copy in memory would wait until its smaller stores are done.
  const auto four_lines = [&](int line) {
    const uint8_t* const first = record + CODES<Type> + line * LINE + 4 * row;
    return (Quads)Ints{load_bytes<int32_t>(first), load_bytes<int32_t>(first + LINE), load_bytes<int32_t>(first + 2 * LINE), load_bytes<int32_t>(first + 3 * LINE)};
  };
  const float d = from_half(record + 2 * row), m = Type::MINIMUM ? Type::SIGN * from_half(record + HALVES + 2 * row) : 0.0f;
  if constexpr (std::is_same_v<Type, Q8_0>) {
    for (int i = 0; i < Type::COLUMNS; i += 16) {
      uint8_t codes[16];
      store_bytes(codes, four_lines(i / 4));
      for (int64_t j = 0; j < 16; j += ROWS) store_bytes(out + i + j, d * load_small<int8_t>(codes + j));
    }
  } else {
    for (int section = 0; section < Type::SECTIONS; section++)
      for (int step = 0; step < Type::STEPS; step += 4) {
        Quads parts[Type::SPLITS];
        Type::split(four_lines, section, step, parts);
        for (int i = 0; i < Type::SPLITS; i++) {
          const uint8_t* scales = record + HALVES * Type::FLOATS + Type::group(section, i) * PANEL + row;
          const float scale = Type::SCALED ? d * static_cast<float>(static_cast<typename Type::Scale>(*scales)) : d;
          const float minimum = Type::SCALED && Type::MINIMUM ? m * static_cast<float>(scales[SCALES<Type> * PANEL]) : m;
          uint8_t small[16];
          store_bytes(small, parts[i]);
          for (int64_t j = 0; j < 16; j += ROWS) store_bytes(out + Type::column(section, step, i) + j, scale * (load_small<uint8_t>(small + j) - static_cast<float>(Type::ZERO)) + minimum);
        }
      }
  }
}

// A weight [n, k] of one or more parts below each other, each with a type: `parts` has (type, rows) of each. Only the last
// part may end within a panel.
struct Records {
  const uint8_t* bytes = nullptr;
  const int64_t* parts = nullptr;
  int64_t count = 0, n = 0, k = 0, panels = 0, nbytes = 0;

  // Call f(type, first record) for a panel of the matrix.
  template <typename F>
  void with_panel(int64_t panel, F f) const {
    const uint8_t* start = bytes;
    for (int64_t i = 0; i < count; i++) {
      const int64_t part_panels = (parts[2 * i + 1] + PANEL - 1) / PANEL;
      bool found = false;
      with_kind(parts[2 * i], [&](auto type) {
        using Type = decltype(type);
        const int64_t panel_bytes = k / Type::COLUMNS * RECORD<Type>;
        found = panel < part_panels;
        if (found) f(type, start + panel * panel_bytes);
        start += part_panels * panel_bytes;
      });
      if (found) return;
      panel -= part_panels;
    }
  }

  // Dequantize rows from `row` on, and of them columns `first`, a multiple of 256, to `last` -> y, with rows `stride` apart.
  void dequantize(int64_t row, int64_t rows, int64_t first, int64_t last, float* y, int64_t stride) const {
    for (const int64_t end = row + rows; row < end;) {
      const int64_t of_panel = row % PANEL, here = std::min(end - row, PANEL - of_panel);
      with_panel(row / PANEL, [&](auto type, const uint8_t* record) {
        using Type = decltype(type);
        record += first / Type::COLUMNS * RECORD<Type>;
        for (int64_t column = 0; column < last - first; column += Type::COLUMNS, record += RECORD<Type>)
          for (int64_t i = 0; i < here; i++) decode<Type>(record, of_panel + i, y + i * stride + column);
      });
      row += here, y += here * stride;
    }
  }

  // x [rows, k] times the weight: calls `write` as `multiply_panels` does.
  template <typename T, typename F>
  void run(const T* x, int64_t x_stride, int64_t rows, const F& write) const {
    std::optional<SplitX16<32>> by_32;  // x in the form that each type takes
    std::optional<SplitX16<16>> by_16;
    std::optional<SwappedX16> by_row;
    for (int64_t i = 0; i < count; i++) {
      if (parts[2 * i] == Q8_0::KIND && !by_row) by_row.emplace(x, x_stride, rows, k);
      else if (parts[2 * i] == Q6_K::KIND && !by_16) by_16.emplace(x, x_stride, rows, k);
      else if (parts[2 * i] != Q8_0::KIND && parts[2 * i] != Q6_K::KIND && !by_32) by_32.emplace(x, x_stride, rows, k);
    }
    parallel_rows(panels, nbytes / panels, 1, [&](int64_t begin, int64_t end) {
      write.begin();
      for (; begin < end; begin++) with_panel(begin, [&](auto type, const uint8_t* start) {
        using Type = decltype(type);
        const auto multiply_by = [&](const auto& quantized_x) {
          for_row_blocks<8 / Type::SUMS>(rows, [&](int64_t first, auto block) {
            constexpr int M = decltype(block)::value;
            Floats out[M][PARTS] = {};
            record_products<Type, M>(start, quantized_x, first, out);
            write_panel(out, first, begin, n, write);
          });
        };
        if constexpr (std::is_same_v<Type, Q8_0>) multiply_by(*by_row);
        else if constexpr (std::is_same_v<Type, Q6_K>) multiply_by(*by_16);
        else multiply_by(*by_32);
      });
    });
  }
};

// The weight and its parts as engine/quant/gguf.py stores them.
inline Records records(const at::Tensor& weight, const at::Tensor& parts) {
  TORCH_CHECK(weight.dim() == 1 && weight.is_contiguous() && weight.scalar_type() == at::kByte, "records: ", weight.sizes());
  TORCH_CHECK(parts.dim() == 2 && parts.size(1) == 2 && parts.size(0) > 0 && parts.is_contiguous(), "records: parts ", parts.sizes());
  Records result{weight.const_data_ptr<uint8_t>(), parts.const_data_ptr<int64_t>(), parts.size(0)};
  int64_t per_block = 0;  // bytes of 256 columns of all panels
  for (int64_t i = 0; i < result.count; i++) {
    const int64_t rows = result.parts[2 * i + 1], panels = (rows + PANEL - 1) / PANEL;
    TORCH_CHECK(rows > 0 && (rows % PANEL == 0 || i == result.count - 1), "records: a part of ", rows, " rows");
    result.n += rows, result.panels += panels;
    with_kind(result.parts[2 * i], [&](auto type) { per_block += panels * RECORD<decltype(type)> * (256 / decltype(type)::COLUMNS); });
  }
  result.nbytes = weight.numel(), result.k = weight.numel() * 8 / per_block * 32;
  TORCH_CHECK(result.k > 0 && result.k / 32 * per_block == 8 * weight.numel(), "records: ", weight.sizes(), " of ", result.n, " rows");
  for (int64_t i = 0; i < result.count; i++)
    with_kind(result.parts[2 * i], [&](auto type) { TORCH_CHECK(result.k % decltype(type)::COLUMNS == 0, "records: ", result.k, " columns"); });
  return result;
}

// Dequantize rows `ids` [N] -> [N, k], in the dtype of `like`.
at::Tensor decode_rows(const at::Tensor& weight, const at::Tensor& parts, const at::Tensor& ids, const at::Tensor& like) {
  const Records of_weight = records(weight, parts);
  TORCH_CHECK(ids.dim() == 1 && ids.is_contiguous() && ids.scalar_type() == at::kLong, "decode_rows: ids ", ids.sizes());
  const int64_t* rows = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); i++) TORCH_CHECK(0 <= rows[i] && rows[i] < of_weight.n, "decode_rows: row ", rows[i], " of ", of_weight.n);
  at::Tensor y = at::empty({ids.numel(), of_weight.k}, like.options());
  dispatch_type(like, [&](auto zero) {
    using T = decltype(zero);
    T* out = y.mutable_data_ptr<T>();
    parallel_rows(ids.numel(), of_weight.k * static_cast<int64_t>(sizeof(float)), PANEL, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin++)
        for (int64_t column = 0; column < of_weight.k; column += 256) {
          const int64_t last = std::min(of_weight.k, column + 256);
          float numbers[256];
          of_weight.dequantize(rows[begin], 1, column, last, numbers, 256);
          at::vec::convert(numbers, out + begin * of_weight.k + column, last - column);
        }
    });
  });
  return y;
}

}  // namespace
