// Products of 8-bit panels (panels.h) by AMX: tiles of bytes, up to 16 rows of x by 16 rows of the weight, 64 columns at a time.
//
// A line of a panel, four columns of 32 rows, is a line of two tiles as it lies. x is quantized to 16 bits as for other
// instruction sets, and taken apart: 256 times a signed byte plus an unsigned one. So all sums are exact integers, whatever is
// computed beside them.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "panels.h"
#include "tiles.h"

namespace {

#if defined(BARELOOP_AMX)
constexpr int64_t BYTES = 64, HALF = 16;               // of a line of a tile; rows of the weight in a tile
constexpr int64_t TILE_LINES = BYTES / 4 * LINE;       // bytes of a panel that are multiplied at a time
constexpr int64_t TILE_SUMS = TILE_ROWS * HALF;        // numbers in a tile of sums

// Rows of x as bytes, in one tile of up to 16 rows, or two of the same height.
struct ByteRows {
  int64_t tiles, of_tile, wide;                        // rows of a tile; columns with padding
  std::vector<uint8_t> upper, lower;                   // [tiles * of_tile, wide]: of the signed and the unsigned byte
  std::vector<float> scales;                           // [rows]

  template <typename T>
  ByteRows(const T* x, int64_t stride, int64_t rows, int64_t k)
      : tiles((rows + TILE_ROWS - 1) / TILE_ROWS), of_tile((rows + tiles - 1) / tiles), wide(round_up(k, BYTES)), upper(tiles * of_tile * wide), lower(upper.size()) {
    QuantizedX16 words(x, stride, rows, k);
    scales = std::move(words.scales);
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));  // of the columns in a line
    const auto in_lines = [&](__m512i numbers) { return _mm256_shuffle_epi8(_mm512_cvtepi16_epi8(numbers), order); };
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < k; i += 32) {
        const __mmask32 mask = k - i < 32 ? (1u << (k - i)) - 1 : ~0u;
        const __m512i numbers = _mm512_maskz_loadu_epi16(mask, words.codes.data() + row * k + i);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(upper.data() + row * wide + i), in_lines(_mm512_srai_epi16(numbers, 8)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lower.data() + row * wide + i), in_lines(numbers));
      }
  }

  // Add the products of some columns, from `column` on, to the sums in the tile registers, for both halves of a panel (one
  // tile of x), or for one (two tiles). `lines`: these columns of the panel.
  template <int TILES>
  inline __attribute__((always_inline)) void add(const uint8_t* lines, int64_t column) const {
    const uint8_t *const a = upper.data() + column, *const b = lower.data() + column;
    _tile_loadd(6, lines, LINE);
    _tile_loadd(4, a, wide);
    _tile_loadd(5, b, wide);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
    if constexpr (TILES == 1) {
      _tile_loadd(7, lines + BYTES, LINE);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_loadd(4, a + of_tile * wide, wide);
      _tile_loadd(5, b + of_tile * wide, wide);
      _tile_dpbssd(2, 4, 6);
      _tile_dpbusd(3, 5, 6);
    }
  }

  // The sums of all rows with a panel [k / 4, 32, 4]: four tiles for each half of it (two tiles of x), or for both.
  // `tail`: its last columns, if they are fewer than 64, followed by zeros; or null. (Not inlined, as the intrinsics do not
  // say which memory they read.)
  template <int TILES>
  __attribute__((noinline)) void multiply(const uint8_t* panel, int64_t k, const uint8_t* tail, int32_t* sums) const {
    for (int64_t half = 0; half < TILES; half++, sums += 4 * TILE_SUMS) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const uint8_t* lines = panel + half * BYTES;
      int64_t column = 0;
      for (; column + BYTES <= k; column += BYTES, lines += TILE_LINES) {
        for (int64_t line = 0; line < TILE_LINES; line += BYTES * TILES) __builtin_prefetch(lines + AHEAD + line, 0, 3);
        add<TILES>(lines, column);
      }
      if (tail != nullptr) add<TILES>(tail + half * BYTES, column);
      _tile_stored(0, sums, BYTES);
      _tile_stored(1, sums + TILE_SUMS, BYTES);
      _tile_stored(2, sums + 2 * TILE_SUMS, BYTES);
      _tile_stored(3, sums + 3 * TILE_SUMS, BYTES);
    }
  }

  // The two tiles of sums, of the upper and of the lower bytes, that have a row of x and a half of the panel.
  const int32_t* sums_of(const int32_t* sums, int64_t row, int64_t half) const {
    const int64_t pair = tiles == 1 ? half : 2 * half + row / of_tile;
    return sums + 2 * pair * TILE_SUMS + row % of_tile * HALF;
  }
};

// As `multiply_panels`, for 8 bits.
template <typename F>
void multiply_byte_panels(const Panels& layout, const ByteRows& x, int64_t rows, const F& write) {
  parallel_rows(layout.count(), layout.bytes(), 1, [&](int64_t begin, int64_t end) {
    write.begin();
    const TileRegisters registers = TileRegisters::of_bytes(x.of_tile);
    const int64_t k = layout.k, rest = k % BYTES;
    alignas(64) uint8_t tail[TILE_LINES] = {};
    alignas(64) int32_t sums[8 * TILE_SUMS];
    for (; begin < end; begin++) {
      const uint8_t* const panel = layout.codes + begin * layout.bytes();
      if (rest) std::memcpy(tail, panel + (k - rest) * PANEL, rest * PANEL);
      if (x.tiles == 1) x.multiply<1>(panel, k, rest ? tail : nullptr, sums);
      else x.multiply<2>(panel, k, rest ? tail : nullptr, sums);
      const int64_t first = begin * PANEL, count = std::min(PANEL, layout.n - first);
      float row_scales[PANEL] = {};
      std::copy_n(static_cast<const float*>(layout.scales) + first, count, row_scales);
      for (int64_t row = 0; row < rows; row++) {
        float numbers[PANEL];
        for (int64_t half = 0; half < 2; half++) {
          const int32_t* const upper = x.sums_of(sums, row, half);
          const Floats sum = to_floats(load_bytes<Sums>(upper)) * 256.0f + to_floats(load_bytes<Sums>(upper + TILE_SUMS));
          store_bytes(numbers + half * HALF, sum * (load_bytes<Floats>(row_scales + half * HALF) * x.scales[row]));
        }
        write(row, first, numbers, count);
      }
    }
  });
}
#endif

}  // namespace
