// Matrix products by AMX, which multiplies tiles of bfloat16 numbers: 16 rows of W by 16 rows of x, 32 columns at a time.
//
// A tile of W is read as it lies in memory, 64 bytes of each row. In a tile of x a line has two columns of all 16 rows, so x
// is packed first. Sums are float32; their order depends on the number of columns alone, so a row of y has the same bits
// whatever is computed beside it. Numbers below 2^-126 count as zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t TILE_ROWS = 16, TILE_COLUMNS = 32;  // of bfloat16

#if defined(BARELOOP_AMX)
template <typename T>
constexpr bool HAS_TILES = std::is_same_v<T, BFloat16>;

// While it exists, this thread's tile registers are in use.
class TileRegisters {
 public:
  // 0 to 3 for sums, 4 and 5 for W, 6 and 7 for x, with `rows` rows of x each.
  explicit TileRegisters(int64_t rows = TILE_ROWS) {
    Config config;
    for (int i = 0; i < 8; i++) config.bytes[i] = i == 4 || i == 5 ? 64 : 4 * rows, config.lines[i] = 16;
    load(config);
  }

  // For panels_tiles.h: 0 to 3 for sums, 4 and 5 for `rows` rows of x, 6 and 7 for lines of a panel.
  static TileRegisters of_bytes(int64_t rows) {
    Config config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.lines[i] = i < 6 ? rows : 16;
    return TileRegisters(config);
  }

  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t lines[16] = {};
  };

  explicit TileRegisters(const Config& config) { load(config); }

  static void load(const Config& config) {
    asm volatile("" ::"r"(&config) : "memory");  // some compilers' _tile_loadconfig says that it reads 8 bytes only
    _tile_loadconfig(&config);
  }
};

// sums += W times x: W of 16 W_TILES rows `w_row` bytes apart, x of X_TILES packed tiles of `x_rows` rows, `x_tile` numbers apart,
// and `steps` tiles of columns of both. Sums have rows `sums_row` apart, and are not read if `fresh`. `next`: as
// many numbers as W has, one after the other, to be fetched meanwhile. (Not inlined, as the intrinsics do not say which
// memory they read.)
template <int W_TILES, int X_TILES>
__attribute__((noinline)) void add_tiles(const BFloat16* w, int64_t w_row, const BFloat16* x, int64_t x_rows, int64_t x_tile, int64_t steps, float* sums, int64_t sums_row, bool fresh,
                                         const BFloat16* next = nullptr) {
  static_assert(1 <= W_TILES && W_TILES <= 2 && 1 <= X_TILES && X_TILES <= 2);
  constexpr bool RIGHT = X_TILES == 2, BELOW = W_TILES == 2;
  const int64_t row = sums_row * sizeof(float);
  float *const right = sums + x_rows, *const below = sums + 16 * sums_row, *const last = below + x_rows;
  if (fresh) {
    _tile_zero(0);
    if constexpr (RIGHT) _tile_zero(1);
    if constexpr (BELOW) _tile_zero(2);
    if constexpr (BELOW && RIGHT) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, row);
    if constexpr (RIGHT) _tile_loadd(1, right, row);
    if constexpr (BELOW) _tile_loadd(2, below, row);
    if constexpr (BELOW && RIGHT) _tile_loadd(3, last, row);
  }
  const char* lines = reinterpret_cast<const char*>(w);
  for (int64_t step = 0; step < steps; step++, lines += 64, x += TILE_COLUMNS * x_rows) {
    for (int64_t i = 0; i < W_TILES * TILE_ROWS && next != nullptr; i++, next += TILE_COLUMNS) __builtin_prefetch(next, 0, 2);
    _tile_loadd(6, x, 4 * x_rows);
    _tile_loadd(4, lines, w_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (RIGHT) {
      _tile_loadd(7, x + x_tile, 4 * x_rows);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (BELOW) {
      _tile_loadd(5, lines + 16 * w_row, w_row);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (RIGHT) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, row);
  if constexpr (RIGHT) _tile_stored(1, right, row);
  if constexpr (BELOW) _tile_stored(2, below, row);
  if constexpr (BELOW && RIGHT) _tile_stored(3, last, row);
}

// Pack up to 16 rows of x [rows, k] as tiles [k / 32, 16, of_tile, 2], with zeros for what is missing; `to` has 64 bytes more.
inline void pack_tile(const BFloat16* x, int64_t x_stride, int64_t rows, int64_t of_tile, int64_t k, BFloat16* to) {
  for (int64_t column = 0; column < k; column += TILE_COLUMNS) {
    const __mmask32 mask = k - column < TILE_COLUMNS ? (1u << (k - column)) - 1 : ~0u;
    __m512i lines[16];
    for (int64_t row = 0; row < 16; row++) lines[row] = row < rows ? _mm512_maskz_loadu_epi16(mask, x + row * x_stride + column) : _mm512_setzero_si512();
    transpose_words(lines);
    for (int64_t i = 0; i < 16; i++, to += 2 * of_tile) _mm512_storeu_si512(to, lines[i]);  // the next line overwrites what is too much
  }
}
#else
template <typename T>
constexpr bool HAS_TILES = false;

struct TileRegisters {};

template <int W_TILES, int X_TILES>
void add_tiles(const BFloat16* w, int64_t w_row, const BFloat16* x, int64_t x_rows, int64_t x_tile, int64_t steps, float* sums, int64_t sums_row, bool fresh,
               const BFloat16* next = nullptr);

inline void pack_tile(const BFloat16*, int64_t, int64_t, int64_t, int64_t, BFloat16*) {}
#endif

}  // namespace
