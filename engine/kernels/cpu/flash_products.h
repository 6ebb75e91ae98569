// The two products of flash attention for one tile of lanes (flash.h): scores [keys, lanes] of a block of keys, and outputs
// [D, lanes] of a block of values. In float32, or by AMX.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "tiles.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE = 64;       // lanes of a tile, and numbers from one row of scores or outputs to the next
constexpr int64_t KEY_BLOCK = 64;  // keys per step of the softmax

#if defined(CPU_CAPABILITY_AVX2)
constexpr int STRIP = 2;  // vectors of lanes whose sums stay in registers
#else
constexpr int STRIP = 4;
#endif
template <int V>
constexpr int STRIP_ROWS = V > 2 || LANES < 16 ? 4 : 8;  // rows of the result per strip

// Call f(first lane, number of vectors as a constant) for strips of the lanes of some vectors.
template <typename F>
inline void for_strips(int64_t first, int64_t vectors, const F& f) {
  for (int64_t i = 0; i < vectors; i += STRIP) with_row_count<STRIP>(vectors - i, [&](auto count) { f((first + i) * LANES, count); });
}

// Memory in whole cache lines.
class Lines {
 public:
  template <typename T>
  T* reserve(int64_t count) {
    const size_t needed = (count * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
    if (lines.size() < needed) lines.resize(needed);
    return reinterpret_cast<T*>(lines.data());
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines;
};

// Products of float32 numbers in every dtype: without AMX, vdpbf16ps takes as long as four FMAs of half as many numbers
// (Sapphire Rapids), so converting a block for each tile, a few percent of its time, is faster and more accurate.
template <typename T>
class FloatProducts {
 public:
  // `rows`: the query of each lane, `size` numbers.
  void load_queries(const T* const* rows, int64_t lanes, int64_t query_size) {
    size = query_size;
    const int64_t wide = round_up(size, 16);
    queries = query_lines.reserve<float>(wide * TILE);
    float* const copied = buffer_lines.reserve<float>(KEY_BLOCK * wide);
    for (int64_t lane = 0; lane < lanes; lane++) copy_to_float(rows[lane], size, copied + lane * wide);
    transpose(copied, wide, round_up(lanes, 16), wide, queries, TILE);
  }

  // Take a block of values [count, D] for `add_values`.
  void load_values(const T* block, int64_t count) { values = to_float(block, count * size, value_lines.reserve<float>(KEY_BLOCK * size)); }

  // k [count, D] -> scores [count, TILE] of some vectors of lanes. A few rows more may be written.
  void multiply_keys(const T* keys, int64_t count, int64_t first, int64_t vectors, float* scores) {
    const float* const k = to_float(keys, count * size, buffer_lines.reserve<float>(KEY_BLOCK * size));
    for_strips(first, vectors, [&](int64_t lane, auto strip) {
      constexpr int V = decltype(strip)::value, K = STRIP_ROWS<V>;
      for (int64_t i = 0; i < count; i += K) {
        Vec sums[K][V];
        for (int r = 0; r < K; r++)
          for (int v = 0; v < V; v++) sums[r][v] = Vec(0.0f);
        add_products(k + i * size, size, count - 1 - i, 1, queries + lane, size, sums);
        for (int r = 0; r < K; r++)
          for (int v = 0; v < V; v++) sums[r][v].store(scores + (i + r) * TILE + lane + v * LANES);
      }
    });
  }

  // Keep the weights of an even key and of the next one for LANES lanes -> sum + both weights.
  Vec add_weights(int64_t key, int64_t lane, Vec even, Vec odd, Vec sum) {
    even.store(weights + key * TILE + lane);
    odd.store(weights + (key + 1) * TILE + lane);
    return sum + even + odd;
  }

  // output [D, TILE] = output times `rescale` [TILE], plus the sum of the values by the weights of their keys.
  void add_values(int64_t count, int64_t first, int64_t vectors, const float* rescale, float* output) {
    for_strips(first, vectors, [&](int64_t lane, auto strip) {
      constexpr int V = decltype(strip)::value, K = STRIP_ROWS<V>;
      Vec factors[V];
      for (int v = 0; v < V; v++) factors[v] = Vec::loadu(rescale + lane + v * LANES);
      for (int64_t d = 0; d < size; d += K) {
        float* const out = output + d * TILE + lane;
        Vec sums[K][V];
        for (int r = 0; r < K; r++)
          for (int v = 0; v < V; v++) sums[r][v] = Vec::loadu(out + r * TILE + v * LANES) * factors[v];
        add_products(values + d, 1, size - 1 - d, size, weights + lane, count, sums);
        for (int r = 0; r < K; r++)
          for (int v = 0; v < V; v++) sums[r][v].store(out + r * TILE + v * LANES);
      }
    });
  }

 private:
  Lines query_lines, value_lines, buffer_lines;
  int64_t size = 0;
  float* queries = nullptr;                       // [D, TILE]
  const float* values = nullptr;                  // [count, D]
  alignas(64) float weights[KEY_BLOCK * TILE];

  // sums [K][V] += a [K, steps] times b [steps, TILE]. Rows of a are `row` numbers apart and columns `column`; rows after
  // `last` repeat it.
  template <int K, int V>
  static inline __attribute__((always_inline)) void add_products(const float* a, int64_t row, int64_t last, int64_t column, const float* b, int64_t steps, Vec (&sums)[K][V]) {
    const float* rows[K];
    for (int k = 0; k < K; k++) rows[k] = a + std::min<int64_t>(k, last) * row;
    for (int64_t step = 0; step < steps; step++) {
      Vec columns[V];
      for (int v = 0; v < V; v++) columns[v] = Vec::loadu(b + step * TILE + v * LANES);
      for (int k = 0; k < K; k++) {
        const Vec number(rows[k][step * column]);
        for (int v = 0; v < V; v++) sums[k][v] = at::vec::fmadd(number, columns[v], sums[k][v]);
      }
    }
  }
};

#if defined(BARELOOP_AMX)
// Products of bfloat16 numbers with float32 sums, for heads of a multiple of 32. Weights are rounded to bfloat16, which changes a
// result by less than rounding it does.
class TileProducts {
 public:
  static bool supports(int64_t size) { return size % TILE_COLUMNS == 0; }

  void load_queries(const BFloat16* const* rows, int64_t lanes, int64_t query_size) {
    size = query_size;
    queries = query_lines.reserve<BFloat16>(TILE * size + TILE_COLUMNS);
    BFloat16* const copied = key_lines.reserve<BFloat16>(TILE * size);
    for (int64_t lane = 0; lane < lanes; lane++) std::copy_n(rows[lane], size, copied + lane * size);
    for (int64_t lane = 0; lane < lanes; lane += 16) pack_tile(copied + lane * size, size, std::min<int64_t>(16, lanes - lane), 16, size, queries + lane * size);
  }

  void load_values(const BFloat16* block, int64_t count) {
    columns = value_lines.reserve<BFloat16>(KEY_BLOCK * size);
    for (int64_t key = 0; key < count; key += TILE_COLUMNS) pack_values(block + key * size, std::min(TILE_COLUMNS, count - key), columns + key);
  }

  void multiply_keys(const BFloat16* keys, int64_t count, int64_t first, int64_t vectors, float* scores) {
    const int64_t padded = round_up(count, 16);
    if (padded > count) {  // a tile has 16 keys
      BFloat16* const copied = key_lines.reserve<BFloat16>(TILE * size);
      std::fill_n(std::copy_n(keys, count * size, copied), (padded - count) * size, BFloat16(0.0f));
      keys = copied;
    }
    for (int64_t key = 0; key < padded; key += 32)
      for_pairs_of_tiles(first, vectors, [&](int64_t lane, auto lanes) {
        constexpr int X = decltype(lanes)::value;
        const auto multiply = padded - key > 16 ? add_tiles<2, X> : add_tiles<1, X>;
        multiply(keys + key * size, 2 * size, queries + lane * size, 16, 16 * size, size / TILE_COLUMNS, scores + key * TILE + lane, TILE, true, nullptr);
      });
  }

  // The sum is that of the rounded weights.
  Vec add_weights(int64_t key, int64_t lane, Vec even, Vec odd, Vec sum) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i pairs = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    _mm512_store_si512(weights + lane * KEY_BLOCK + key * 16, pairs);
    return Vec(_mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi16(0x3f80)));  // times 1
  }

  void add_values(int64_t count, int64_t first, int64_t vectors, const float* rescale, float* output) {
    for_strips(first, vectors, [&](int64_t lane, auto strip) { scale_outputs<decltype(strip)::value>(rescale + lane, output + lane); });
    const int64_t steps = (count + TILE_COLUMNS - 1) / TILE_COLUMNS;
    for (int64_t lane = first * LANES; lane < (first + vectors) * LANES; lane += LANES) {  // no weight for the keys that are missing
      BFloat16* const of_lanes = weights + lane * KEY_BLOCK;
      std::fill(of_lanes + round_up(count, 2) * 16, of_lanes + steps * TILE_COLUMNS * 16, BFloat16(0.0f));
    }
    for (int64_t d = 0; d < size; d += 32)
      for_pairs_of_tiles(first, vectors, [&](int64_t lane, auto lanes) {
        add_tiles<2, decltype(lanes)::value>(columns + d * KEY_BLOCK, 2 * KEY_BLOCK, weights + lane * KEY_BLOCK, 16, 16 * KEY_BLOCK, steps, output + d * TILE + lane, TILE, false);
      });
  }

 private:
  static_assert(LANES == 16);
  Lines query_lines, key_lines, value_lines;
  int64_t size = 0;
  BFloat16* columns = nullptr;                       // of the values: [D, KEY_BLOCK]
  BFloat16* queries = nullptr;                       // of 16 lanes each: [D / 32, 16, 16, 2]
  alignas(64) BFloat16 weights[TILE * KEY_BLOCK];  // of 16 lanes each: [KEY_BLOCK / 2, 16, 2]

  template <typename F>
  static void for_pairs_of_tiles(int64_t first, int64_t vectors, const F& f) {
    for (int64_t i = 0; i < vectors; i += 2) with_row_count<2>(vectors - i, [&](auto count) { f((first + i) * LANES, count); });
  }

  // Most blocks have no larger score than those before.
  template <int V>
  void scale_outputs(const float* rescale, float* output) const {
    Vec factors[V];
    bool is_one = true;
    for (int v = 0; v < V; v++) factors[v] = Vec::loadu(rescale + v * LANES), is_one &= _mm512_cmpneq_ps_mask(factors[v], _mm512_set1_ps(1.0f)) == 0;
    if (is_one) return;
    for (int64_t d = 0; d < size; d++)
      for (int v = 0; v < V; v++) (Vec::loadu(output + d * TILE + v * LANES) * factors[v]).store(output + d * TILE + v * LANES);
  }

  // Up to 32 rows of values [count, D] -> [D, KEY_BLOCK], with zeros for the missing ones.
  void pack_values(const BFloat16* values, int64_t count, BFloat16* to) const {
    const auto load_row = [&](int64_t key, int64_t d) { return key < count ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + key * size + d))) : _mm512_setzero_si512(); };
    for (int64_t d = 0; d < size; d += 16) {
      __m512i pairs[16];
      for (int64_t i = 0; i < 16; i++) pairs[i] = _mm512_or_si512(load_row(2 * i, d), _mm512_slli_epi32(load_row(2 * i + 1, d), 16));
      transpose_words(pairs);
      for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(to + (d + i) * KEY_BLOCK, pairs[i]);
    }
  }
};
#endif

}  // namespace
