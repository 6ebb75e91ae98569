// One new token of 1 to 8 rows through all blocks of a decoder, as `Block` in engine/models/decoder.py has them.
//
// Sums are in float32. What the modules round between two products is rounded here too, but within the attention and
// the gated activation, which are in float32 up to their results.
#pragma once

#include "activations.h"
#include "attention.h"
#include "linear.h"
#include "norms.h"

namespace {

// What a block holds, each a weight, its scales and its bias: the order of `Block.holders`.
enum Weights { QKV, OUT, UP, DOWN, ATTENTION_BEFORE, ATTENTION_AFTER, MLP_BEFORE, MLP_AFTER, Q, K, COUNT };

// The choices of a decoder, `DecoderConfig`'s, under the same names.
struct Choices {
  NormKind norm;
  float eps, clip_qkv;  // 0: no clip
  c10::string_view activation, qk_norm;
  bool norm_before, norm_after, parallel, one_norm, gated;
};

template <typename T>
struct Block {
  const Choices& is;
  Heads heads;
  Turns turns;
  int64_t rows, hidden;
  Matrix<T> held[COUNT];

  // The weights of a layer, whose shapes fit one another and x.
  void hold(const Optionals& weights, int64_t layer) {
    for (int64_t i = 0; i < COUNT; i++) {
      const int64_t place = 3 * (COUNT * layer + i);
      const std::optional<at::Tensor> weight = weights.get(place);
      if (weight) held[i] = matrix<T>(*weight, weights.get(place + 1), weights.get(place + 2));
    }
    const int64_t inner = is.gated ? held[UP].n / 2 : held[UP].n;
    fits(QKV, heads.q_size() + 2 * heads.kv_size(), hidden);
    fits(OUT, hidden, heads.q_size());
    fits(UP, is.gated ? 2 * inner : inner, hidden);
    fits(DOWN, hidden, inner);
    for (const Weights norm : {ATTENTION_BEFORE, ATTENTION_AFTER, MLP_BEFORE, MLP_AFTER})
      if (held[norm].weight) fits(norm, hidden, 0);
    const bool whole = is.qk_norm == "width";
    if (held[Q].weight) fits(Q, whole ? heads.q_size() : heads.size, 0);
    if (held[K].weight) fits(K, whole ? heads.kv_size() : heads.size, 0);
  }

  void fits(Weights which, int64_t n, int64_t k) const {
    const Matrix<T>& one = held[which];
    TORCH_CHECK((one.weight || one.panels.codes) && one.n == n && one.k == k, "blocks: weight ", which, " is [", one.n, ", ", one.k, "], not [", n, ", ", k, "]");
  }

  // x [rows, k] -> [rows, n]
  std::vector<T> times(Weights which, const std::vector<T>& x) const {
    return product(held[which], x.data(), rows, held[which].k);
  }

  // Each `size` numbers of x by themselves.
  void normalize(Weights which, T* x, int64_t count, int64_t size) const {
    const Norm<T> norm{is.norm, is.eps, held[which].weight, held[which].bias};
    for (int64_t i = 0; i < count; i += size) norm(x + i, x + i, size);
  }

  // Where it is `wanted`, else x as it is.
  std::vector<T> normalized(bool wanted, Weights which, std::vector<T> x) const {
    if (wanted) normalize(which, x.data(), rows * hidden, hidden);
    return x;
  }

  std::vector<T> attention(const std::vector<T>& x, const std::vector<Place>& places, int64_t place) const {
    std::vector<T> qkv = times(QKV, x);
    if (is.clip_qkv != 0.0f)
      for (T& number : qkv) number = std::clamp<float>(number, -is.clip_qkv, is.clip_qkv);  // a NaN stays one
    const int64_t q_size = heads.q_size(), kv_size = heads.kv_size();
    for (int64_t row = 0; !is.qk_norm.empty() && row < rows; row++) {
      T* q = qkv.data() + row * (q_size + 2 * kv_size);
      const bool whole = is.qk_norm == "width";
      normalize(Q, q, q_size, whole ? q_size : heads.size);
      normalize(K, q + q_size, kv_size, whole ? kv_size : heads.size);
    }
    std::vector<T> attended(rows * q_size);
    attend(heads, qkv.data(), turns, places, place, attended.data());
    return times(OUT, attended);
  }

  std::vector<T> mlp(const std::vector<T>& x) const {
    const std::vector<T> up = times(UP, x);
    const int64_t width = up.size() / rows, size = is.gated ? width / 2 : width;
    std::vector<T> inner(rows * size);
    for (int64_t row = 0; row < rows; row++) {
      const T* from = up.data() + row * width;
      activate(is.activation, from, is.gated ? from + size : nullptr, inner.data() + row * size, size);
    }
    return times(DOWN, inner);
  }

  static void add(std::vector<T>& x, const std::vector<T>& y) {
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(x[i]) + static_cast<float>(y[i]);
  }

  std::vector<T> forward(std::vector<T> x, const std::vector<Place>& places, int64_t place) const {
    const std::vector<T> read = normalized(is.norm_before, ATTENTION_BEFORE, x);
    const std::vector<T> attended = normalized(is.norm_after, ATTENTION_AFTER, attention(read, places, place));
    if (is.parallel) {
      const std::vector<T> mlp_read = is.one_norm ? read : normalized(is.norm_before, MLP_BEFORE, x);
      add(x, attended);
      add(x, normalized(is.norm_after, MLP_AFTER, mlp(mlp_read)));
      return x;
    }
    add(x, attended);
    const std::vector<T> mlp_read = is.one_norm ? read : normalized(is.norm_before, MLP_BEFORE, x);
    add(x, normalized(is.norm_after, MLP_AFTER, mlp(mlp_read)));
    return x;
  }
};

// x [R, hidden] -> [R, hidden].
//
// angles: cos and sin [R, 1, half] of each rotary embedding, and `ropes`, which of them each layer turns by (-1: none).
// caches: the segments of all rows, for each kind of layers, and which of their tokens the new one sees, `first` to
// `last`, its own; `kinds` and `places` say of each layer its kind, and where it stands in these segments.
at::Tensor blocks(const at::Tensor& x, at::TensorList angles, at::TensorList caches, at::IntArrayRef first, at::IntArrayRef last,
                  at::IntArrayRef kinds, at::IntArrayRef places, const Optionals& weights, at::IntArrayRef ropes, at::ArrayRef<double> scales,
                  at::IntArrayRef heads, c10::string_view norm, c10::string_view qk_norm, c10::string_view activation, double eps,
                  double softcap, double clip_qkv, bool norm_before, bool norm_after, bool parallel, bool one_norm, bool gated) {
  const int64_t rows = x.size(0), layers = kinds.size(), groups = heads[0], queries = heads[1], size = heads[2];
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && 1 <= rows && rows <= MOST_ROWS, "blocks: x ", x.sizes());
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == layers * 3 * COUNT, "blocks: ", weights.size(), " weights of ", layers, " layers");
  TORCH_CHECK(static_cast<int64_t>(places.size()) == layers && static_cast<int64_t>(ropes.size()) == layers && static_cast<int64_t>(scales.size()) == layers, "blocks: ", layers, " layers");
  TORCH_CHECK(caches.size() % rows == 0 && first.size() == caches.size() && last.size() == caches.size(), "blocks: places of ", rows, " rows");
  std::vector<std::vector<Place>> seen(caches.size() / rows);
  for (size_t i = 0; i < caches.size(); i++) {
    const at::Tensor& cache = caches[i];
    TORCH_CHECK(cache.dim() == 5 && cache.is_contiguous() && cache.scalar_type() == x.scalar_type(), "blocks: a cache of ", cache.sizes());
    TORCH_CHECK(cache.size(2) == groups && cache.size(4) == size, "blocks: a cache of ", cache.sizes());
    TORCH_CHECK(0 <= first[i] && first[i] <= last[i] && last[i] < cache.size(3), "blocks: tokens ", first[i], " to ", last[i]);
    seen[i / rows].push_back({cache, first[i], last[i]});
  }
  std::vector<std::vector<float>> tables;
  for (const at::Tensor& table : angles) {
    TORCH_CHECK(table.is_contiguous() && table.size(0) == rows && 2 * table.size(-1) <= size, "blocks: angles ", table.sizes());
    const at::Tensor wide = table.to(at::kFloat);
    tables.emplace_back(wide.const_data_ptr<float>(), wide.const_data_ptr<float>() + wide.numel());
  }

  const Choices choices{norm_kind(norm), static_cast<float>(eps), static_cast<float>(clip_qkv), activation, qk_norm,
                        norm_before, norm_after, parallel, one_norm, gated};
  at::Tensor y = at::empty(x.sizes(), x.options());
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    std::vector<T> stream(from, from + x.numel());
    for (int64_t layer = 0; layer < layers; layer++) {
      const std::vector<Place>& own_places = seen.at(kinds[layer]);
      for (const Place& place : own_places) TORCH_CHECK(places[layer] < place.cache.size(0), "blocks: layer ", places[layer], " of ", place.cache.sizes());
      const Heads own{groups, queries, size, static_cast<float>(scales[layer]), static_cast<float>(softcap)};
      Turns turns;
      if (ropes[layer] >= 0) turns = {tables[2 * ropes[layer]].data(), tables[2 * ropes[layer] + 1].data(), angles[2 * ropes[layer]].size(-1)};
      Block<T> block{choices, own, turns, rows, x.size(1)};
      block.hold(weights, layer);
      stream = block.forward(std::move(stream), own_places, places[layer]);
    }
    std::copy(stream.begin(), stream.end(), y.mutable_data_ptr<T>());
  });
  return y;
}

}  // namespace
