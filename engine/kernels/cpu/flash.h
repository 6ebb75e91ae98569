// Attention of many new tokens over the cached keys of their rows, in one pass (FlashAttention, Dao et al. 2022).
//
// A tile is up to 64 (token, query head) pairs of one group, the lanes of a few vectors: scores are computed transposed,
// [keys, lanes], so that softmax adds nothing across lanes, and keys are read as they lie in the cache. Lanes never mix,
// and blocks of keys begin at multiples of 64 from the oldest cached one; so the bits of a result depend neither on the
// other lanes nor on where a row's segments or chunks end. (But a value that is not finite reaches all new tokens of its row,
// because a weight of zero times it is not zero.)
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <limits>
#include <vector>

#include "flash_products.h"
#include "keys.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr float NO_SCORE = -1e30f;  // below every score; finite, so that differences are not NaN

// Query heads per group, window in tokens (0: none), and the scale and the cap of scores: s becomes cap tanh(s / cap); 0:
// no cap.
struct Scoring {
  int64_t queries, window;
  float scale, cap;
};

// Consecutive lanes of a tile: (token, query head) pairs of a row, from the row's `first` on.
struct LaneRun {
  int64_t row, first, count;
};

struct Tile {
  std::vector<LaneRun> runs;  // part of one row, or several whole rows
  int64_t lanes = 0;
  int64_t shared = 0;         // keys that several rows share, in whole blocks
};

template <typename T>
std::vector<Tile> tiles(const Keys<T>& keys, int64_t queries) {
  std::vector<Tile> result;
  for (size_t i = 0; i < keys.rows.size(); i++) {
    const int64_t lanes = keys.rows[i].count * queries;
    const int64_t shared = i > 0 ? keys.shared(keys.rows[i - 1], keys.rows[i]) / KEY_BLOCK * KEY_BLOCK : 0;
    if (2 * shared >= keys.rows[i].length && result.back().lanes + lanes <= TILE && result.back().runs[0].first == 0) {
      Tile& tile = result.back();
      tile.shared = tile.runs.size() == 1 ? shared : std::min(tile.shared, shared);
      tile.runs.push_back({static_cast<int64_t>(i), 0, lanes});
      tile.lanes += lanes;
      continue;
    }
    for (int64_t first = 0; first < lanes; first += TILE) {
      const int64_t count = std::min(TILE, lanes - first);
      result.push_back({{{static_cast<int64_t>(i), first, count}}, count});
    }
  }
  return result;
}

// The computation of a tile, and its memory.
template <typename T, typename Products>
class FlashTile {
 public:
  // q [N, H, D] with strides `token` and `head` -> out [N, H, D], contiguous.
  void run(const Keys<T>& step_keys, const Scoring& step_scoring, const Tile& tile, int64_t group, const T* q, int64_t token, int64_t head, T* out) {
    keys = &step_keys, scoring = step_scoring;
    lanes = tile.lanes;
    const int64_t wide = round_up(keys->size, 16);
    output = output_lines.template reserve<float>(wide * TILE);
    gathered = gathered_lines.template reserve<T>(2 * KEY_BLOCK * wide);
    std::fill_n(output, wide * TILE, 0.0f);
    std::fill_n(largest, TILE, NO_SCORE);
    std::fill_n(total, TILE, 0.0f);
    load_queries(tile, group, q, token, head);
    visit({tile.runs[0].row, 0, lanes}, group, 0, tile.shared);
    int64_t lane = 0;
    for (const LaneRun& run : tile.runs) {
      visit({run.row, lane, run.count}, group, tile.shared, keys->rows[run.row].length);
      lane += run.count;
    }
    store_outputs(tile, group, out);
  }

 private:
  const Keys<T>* keys;
  Scoring scoring;
  int64_t lanes;
  Products products;
  Lines output_lines, gathered_lines, kept_lines;
  float* output;                                   // [D, TILE]
  T* gathered;                                     // [2, KEY_BLOCK, D]
  alignas(64) float scores[KEY_BLOCK * TILE];
  alignas(64) float largest[TILE], total[TILE], newest[TILE];  // of each lane: largest score, sum of e^(score - largest), last visible key
  alignas(64) float rescale[TILE], own[TILE];                  // 1 for the lanes that a visit is for

  // Call f(lane, row, index of the token in the row, query head in the group) for all lanes.
  template <typename F>
  void for_lanes(const Tile& tile, const F& f) const {
    int64_t lane = 0;
    for (const LaneRun& run : tile.runs)
      for (int64_t i = run.first; i < run.first + run.count; i++) f(lane++, keys->rows[run.row], i / scoring.queries, i % scoring.queries);
  }

  void load_queries(const Tile& tile, int64_t group, const T* q, int64_t token, int64_t head) {
    const T* rows[TILE];
    for_lanes(tile, [&](int64_t lane, const auto& row, int64_t index, int64_t g) {
      rows[lane] = q + (row.query + index) * token + (group * scoring.queries + g) * head;
      newest[lane] = row.start() + index;
    });
    std::fill(newest + lanes, newest + TILE, newest[lanes - 1]);
    products.load_queries(rows, lanes, keys->size);
  }

  // Let some lanes attend to the keys from `begin` to `end` of a row.
  void visit(LaneRun run, int64_t group, int64_t begin, int64_t end) {
    const auto [oldest, last] = std::minmax_element(newest + run.first, newest + run.first + run.count);
    const int64_t first = run.first / LANES, vectors = (run.first + run.count + LANES - 1) / LANES - first;
    const bool foreign = run.first % LANES || (run.count % LANES && run.first + run.count < lanes);
    for (int64_t lane = 0; lane < TILE; lane++) own[lane] = run.first <= lane && (lane < run.first + run.count || lane >= lanes);
    end = std::min(end, static_cast<int64_t>(*last) + 1);
    if (scoring.window) begin = std::max(begin, (static_cast<int64_t>(*oldest) - scoring.window + 1) / 32 * 32);  // products add pairs of keys
    const auto& row = keys->rows[run.row];
    for (int64_t next; begin < end; begin = next) {
      next = std::min((begin / KEY_BLOCK + 1) * KEY_BLOCK, end);
      const int64_t count = next - begin;
      const bool masked = foreign || *oldest < next - 1 || (scoring.window && *last - scoring.window >= begin);
      products.load_values(keys->find(row, true, group, begin, count, gathered), count);
      products.multiply_keys(keys->find(row, false, group, begin, count, gathered + KEY_BLOCK * keys->size), count, first, vectors, scores);
      for_strips(first, vectors, [&](int64_t lane, auto strip) {
        constexpr int V = decltype(strip)::value;
        if (scoring.cap != 0.0f) cap<V>(lane, count);
        if (masked) mask<V>(lane, begin, count);
        softmax<V>(lane, count);
      });
      if (foreign) add_own_values(count, first, vectors);
      else products.add_values(count, first, vectors, rescale, output);
    }
  }

  // As `add_values`, but leave the lanes of other rows as they are: their weights are zero, and zero times an infinite
  // value would be NaN.
  void add_own_values(int64_t count, int64_t first, int64_t vectors) {
    const int64_t numbers = keys->size * TILE;
    float* const kept = kept_lines.template reserve<float>(numbers);
    std::copy_n(output, numbers, kept);
    products.add_values(count, first, vectors, rescale, output);
    for (int64_t i = 0; i < numbers; i += LANES) Vec::blendv(Vec::loadu(kept + i), Vec::loadu(output + i), Vec::loadu(own + i % TILE) > Vec(0.0f)).store(output + i);
  }

  template <int V>
  void cap(int64_t lane, int64_t count) {
    const Vec factor(scoring.scale / scoring.cap);
    for (int64_t i = 0; i < count; i++)
      for (int v = 0; v < V; v++) {
        float* const s = scores + i * TILE + lane + v * LANES;
        (Vec::loadu(s) * factor).tanh().store(s);
      }
  }

  template <int V>
  void mask(int64_t lane, int64_t begin, int64_t count) {
    const Vec hidden(-std::numeric_limits<float>::infinity()), none(-1.0f);
    Vec from[V], to[V];
    for (int v = 0; v < V; v++) {
      const Vec position = Vec::loadu(newest + lane + v * LANES);
      from[v] = scoring.window ? position - Vec(scoring.window - 1) : none;
      to[v] = Vec::blendv(none, position, Vec::loadu(own + lane + v * LANES) > Vec(0.0f));
    }
    for (int64_t i = 0; i < count; i++) {
      const Vec key(begin + i);
      for (int v = 0; v < V; v++) {
        float* const s = scores + i * TILE + lane + v * LANES;
        Vec::blendv(hidden, Vec::loadu(s), (from[v] <= key) & (key <= to[v])).store(s);
      }
    }
  }

  template <int V>
  void softmax(int64_t lane, int64_t count) {
    const Vec unit((scoring.cap != 0.0f ? scoring.cap : scoring.scale) * 1.44269504f);  // of the scores, as powers of 2
    Vec maxima[V], minus[V], sums[V];
    for (int v = 0; v < V; v++) maxima[v] = Vec(-std::numeric_limits<float>::infinity()), sums[v] = Vec(0.0f);
    for (int64_t i = 0; i < count; i++)
      for (int v = 0; v < V; v++) maxima[v] = at::vec::clamp_min(Vec::loadu(scores + i * TILE + lane + v * LANES), maxima[v]);
    for (int v = 0; v < V; v++) {
      const int64_t at = lane + v * LANES;
      const Vec old = Vec::loadu(largest + at), now = at::vec::clamp_min(maxima[v] * unit, old);
      now.store(largest + at);
      exp2(old - now).store(rescale + at);
      minus[v] = now.neg();
    }
    for (int64_t i = 0; i < count; i += 2)
      for (int v = 0; v < V; v++) {
        const float* const s = scores + i * TILE + lane + v * LANES;
        const Vec even = exp2(at::vec::fmadd(Vec::loadu(s), unit, minus[v]));
        const Vec odd = i + 1 < count ? exp2(at::vec::fmadd(Vec::loadu(s + TILE), unit, minus[v])) : Vec(0.0f);
        sums[v] = products.add_weights(i, lane + v * LANES, even, odd, sums[v]);
      }
    for (int v = 0; v < V; v++) {
      float* const t = total + lane + v * LANES;
      at::vec::fmadd(Vec::loadu(t), Vec::loadu(rescale + lane + v * LANES), sums[v]).store(t);
    }
  }

  void store_outputs(const Tile& tile, int64_t group, T* out) {
    const int64_t size = keys->size, wide = round_up(size, 16), heads = keys->groups * scoring.queries;
    float* const rows = kept_lines.template reserve<float>(wide * TILE);
    for (int64_t d = 0; d < size; d++)
      for (int64_t lane = 0; lane < lanes; lane += LANES) (Vec::loadu(output + d * TILE + lane) / Vec::loadu(total + lane)).store(output + d * TILE + lane);
    transpose(output, TILE, wide, round_up(lanes, 16), rows, wide);
    for_lanes(tile, [&](int64_t lane, const auto& row, int64_t index, int64_t g) {
      T* const to = out + ((row.query + index) * heads + group * scoring.queries + g) * size;
      for_pairs(size, [&](int64_t d, int64_t count) { store(to + d, load(rows + lane * wide + d, count), count); });
    });
  }
};

// q [N, H, D] -> softmax(cap(scale q kᵀ)) v [N, H, D] over the keys of each query's row up to its own token, and from
// `window` tokens back if that is not 0. Sums are float32, rounded once.
// segments, rows, pieces: as for `Keys`; the new keys and values have been written.
at::Tensor flash_attention(const at::Tensor& q, at::TensorList segments, at::IntArrayRef rows, at::IntArrayRef pieces, int64_t layer, int64_t window,
                           double scale, double softcap) {
  TORCH_CHECK(q.dim() == 3 && segments.size() > 0 && segments[0].dim() == 5, "flash_attention: ", q.sizes(), ", ", segments.size(), " segments");
  const at::Tensor input = q.stride(-1) == 1 ? q : q.contiguous();
  at::Tensor out = at::empty(q.sizes(), q.options());
  Pool::get().expect(false);
  dispatch_type(q, [&](auto zero) {
    using T = decltype(zero);
    const int64_t heads = q.size(1), groups = segments[0].size(2);
    const Keys<T> keys(segments, rows, pieces, layer, q.size(0), groups, q.size(2));
    TORCH_CHECK(groups > 0 && heads % groups == 0 && scale > 0, "flash_attention: ", heads, " heads, ", groups, " groups, scale ", scale);
    const Scoring scoring{heads / groups, window, static_cast<float>(scale), static_cast<float>(softcap)};
    const std::vector<Tile> of_group = tiles(keys, scoring.queries);
    const int64_t count = of_group.size();
    const auto run = [&](auto& work, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)  // a row's last tiles, which have the most keys, come first
        work.run(keys, scoring, of_group[count - 1 - i % count], i / count, input.const_data_ptr<T>(), input.stride(0), input.stride(1), out.mutable_data_ptr<T>());
    };
    parallel_tasks(count * groups, [&](int64_t first, int64_t last) {
#if defined(BARELOOP_AMX)
      if constexpr (HAS_TILES<T>) {
        if (TileProducts::supports(keys.size)) {
          const TileRegisters registers;
          static thread_local FlashTile<T, TileProducts> work;
          return run(work, first, last);
        }
      }
#endif
      static thread_local FlashTile<T, FloatProducts<T>> work;
      run(work, first, last);
    });
  });
  return out;
}

}  // namespace
