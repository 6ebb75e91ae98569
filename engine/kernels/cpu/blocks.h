// 1 to 32 new tokens through all blocks of a decoder, as `Block` in engine/models/decoder.py.
//
// Sums are float32. Intermediate results are rounded where the modules round them, except inside attention and the gated
// activation, which are float32 up to their results.
#pragma once

#include "activations.h"
#include "attention.h"
#include "linear.h"
#include "norms.h"

namespace {

// The modules of a block, each with a weight, scales and a bias, in the order of `Block.kernel_modules`.
enum Module { QKV, OUT, UP, DOWN, ATTENTION_BEFORE, ATTENTION_AFTER, MLP_BEFORE, MLP_AFTER, Q, K, COUNT };

// The choices of `DecoderConfig`, under the same names.
struct Choices {
  NormKind norm;
  float eps, clip_qkv;  // 0: no clipping
  c10::string_view activation, qk_norm;
  bool norm_before, norm_after, parallel, one_norm, gated;
};

template <typename T>
struct Block {
  const Choices& config;
  Heads heads;
  RotaryTable rotary;
  int64_t rows, hidden;
  Matrix<T> modules[COUNT];

  // Set the weights of a layer, after checking that their shapes match.
  void set_weights(const Optionals& weights, const Adapters<T>& adapters, int64_t layer) {
    for (int64_t i = 0; i < COUNT; i++) {
      const int64_t index = COUNT * layer + i;
      const std::optional<at::Tensor> weight = weights.get(3 * index);
      if (weight) modules[i] = with_adapter(matrix<T>(*weight, weights.get(3 * index + 1), weights.get(3 * index + 2)), adapters[index]);
    }
    const int64_t inner = config.gated ? modules[UP].n / 2 : modules[UP].n;
    check_shape(QKV, heads.q_size() + 2 * heads.kv_size(), hidden);
    check_shape(OUT, hidden, heads.q_size());
    check_shape(UP, config.gated ? 2 * inner : inner, hidden);
    check_shape(DOWN, hidden, inner);
    for (const Module norm : {ATTENTION_BEFORE, ATTENTION_AFTER, MLP_BEFORE, MLP_AFTER})
      if (modules[norm].weight) check_shape(norm, hidden, 0);
    const bool whole = config.qk_norm == "width";
    if (modules[Q].weight) check_shape(Q, whole ? heads.q_size() : heads.size, 0);
    if (modules[K].weight) check_shape(K, whole ? heads.kv_size() : heads.size, 0);
  }

  void check_shape(Module which, int64_t n, int64_t k) const {
    const Matrix<T>& w = modules[which];
    TORCH_CHECK(w.exists() && w.n == n && w.k == k, "blocks: weight ", which, " is [", w.n, ", ", w.k, "], not [", n, ", ", k, "]");
  }

  // Call f(row) for each row of tokens, which reads or writes some `bytes`, in parallel if that is worth it.
  template <typename F>
  void for_rows(int64_t bytes, const F& f) const {
    parallel_rows(rows, bytes, 1, [&](int64_t row, int64_t end) {
      for (; row < end; row++) f(row);
    });
  }

  // x [rows, k] -> [rows, n]
  std::vector<T> times(Module which, const std::vector<T>& x) const {
    return product(modules[which], x.data(), rows, modules[which].k);
  }

  // Normalize x [count] in place, each `size` numbers by themselves.
  void normalize(Module which, T* x, int64_t count, int64_t size) const {
    const Norm<T> norm{config.norm, config.eps, modules[which].weight, modules[which].bias};
    for (int64_t i = 0; i < count; i += size) norm(x + i, x + i, size);
  }

  // x normalized if `wanted`, else unchanged.
  std::vector<T> normalized(bool wanted, Module which, std::vector<T> x) const {
    if (wanted) for_rows(4 * hidden, [&](int64_t row) { normalize(which, x.data() + row * hidden, hidden, hidden); });
    return x;
  }

  std::vector<T> attention(const std::vector<T>& x, const Keys<T>& keys, int64_t window) const {
    std::vector<T> qkv = times(QKV, x);
    if (config.clip_qkv != 0.0f)
      for (T& number : qkv) number = std::clamp<float>(number, -config.clip_qkv, config.clip_qkv);  // a NaN stays a NaN
    const int64_t q_size = heads.q_size(), kv_size = heads.kv_size();
    if (!config.qk_norm.empty())
      for_rows(4 * q_size, [&](int64_t row) {
        T* q = qkv.data() + row * (q_size + 2 * kv_size);
        const bool whole = config.qk_norm == "width";
        normalize(Q, q, q_size, whole ? q_size : heads.size);
        normalize(K, q + q_size, kv_size, whole ? kv_size : heads.size);
      });
    std::vector<T> attended(rows * q_size);
    Attention<T>{heads, rotary, keys, window}.run(qkv.data(), attended.data());
    return times(OUT, attended);
  }

  std::vector<T> mlp(const std::vector<T>& x) const {
    const std::vector<T> up = times(UP, x);
    const int64_t width = up.size() / rows, size = config.gated ? width / 2 : width;
    std::vector<T> inner(rows * size);
    for_rows(8 * size, [&](int64_t row) {
      const T* start = up.data() + row * width;
      activate(config.activation, start, config.gated ? start + size : nullptr, inner.data() + row * size, size);
    });
    return times(DOWN, inner);
  }

  // x += y
  void add(std::vector<T>& x, const std::vector<T>& y) const {
    for_rows(hidden, [&](int64_t row) {
      for (int64_t i = row * hidden; i < (row + 1) * hidden; i += PAIR) {
        const int64_t count = std::min(PAIR, (row + 1) * hidden - i);
        const Pair a = load(x.data() + i, count), b = load(y.data() + i, count);
        store(x.data() + i, Pair{a.low + b.low, a.high + b.high}, count);
      }
    });
  }

  std::vector<T> forward(std::vector<T> x, const Keys<T>& keys, int64_t window) const {
    const std::vector<T> normed = normalized(config.norm_before, ATTENTION_BEFORE, x);
    const std::vector<T> attended = normalized(config.norm_after, ATTENTION_AFTER, attention(normed, keys, window));
    if (config.parallel) {
      const std::vector<T> mlp_input = config.one_norm ? normed : normalized(config.norm_before, MLP_BEFORE, x);
      add(x, attended);
      add(x, normalized(config.norm_after, MLP_AFTER, mlp(mlp_input)));
      return x;
    }
    add(x, attended);
    const std::vector<T> mlp_input = config.one_norm ? normed : normalized(config.norm_before, MLP_BEFORE, x);
    add(x, normalized(config.norm_after, MLP_AFTER, mlp(mlp_input)));
    return x;
  }
};

// x [N, hidden] -> [N, hidden].
//
// angles: cos and sin [N, 1, half] of each rotary embedding; `ropes`: index of each layer's (-1: none).
// segments, counts, lengths: as for `Keys`, of all caches end to end; `windows`: of each cache, in tokens (0: none).
// `cache_indices` and `cache_layers`: each layer's cache, and its layer index there.
// `adapters` and `adapter_sizes`: as for `Adapters`, of all layers' modules end to end.
at::Tensor blocks(const at::Tensor& x, at::TensorList angles, at::TensorList segments, at::IntArrayRef counts, at::IntArrayRef lengths, at::IntArrayRef windows,
                  at::IntArrayRef cache_indices, at::IntArrayRef cache_layers, const Optionals& weights, at::IntArrayRef ropes, at::ArrayRef<double> scales,
                  at::IntArrayRef heads, c10::string_view norm, c10::string_view qk_norm, c10::string_view activation, double eps,
                  double softcap, double clip_qkv, bool norm_before, bool norm_after, bool parallel, bool one_norm, bool gated,
                  const std::optional<at::Tensor>& adapters, const std::optional<at::Tensor>& adapter_sizes) {
  const int64_t rows = x.size(0), layers = cache_indices.size(), groups = heads[0], queries = heads[1], size = heads[2];
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && 1 <= rows && rows <= MAX_ROWS, "blocks: x ", x.sizes());
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == layers * 3 * COUNT, "blocks: ", weights.size(), " weights of ", layers, " layers");
  TORCH_CHECK(static_cast<int64_t>(cache_layers.size()) == layers && static_cast<int64_t>(ropes.size()) == layers && static_cast<int64_t>(scales.size()) == layers, "blocks: ", layers, " layers");
  check_activation(activation);
  Pool::get().expect(true);
  const size_t row_counts = windows.empty() ? 0 : counts.size() / windows.size();
  std::vector<std::pair<at::IntArrayRef, at::IntArrayRef>> caches;  // counts and lengths of each
  for (size_t i = 0, start = 0; i < windows.size(); i++) {
    size_t pieces = 0;
    for (size_t j = 1; j < row_counts; j += 2) pieces += 2 * counts[i * row_counts + j];
    TORCH_CHECK(start + pieces <= lengths.size(), "blocks: ", lengths.size(), " lengths of pieces");
    caches.emplace_back(counts.slice(i * row_counts, row_counts), lengths.slice(start, pieces));
    start += pieces;
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
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* input = x.const_data_ptr<T>();
    const Adapters<T> all_adapters(adapters, adapter_sizes, layers * COUNT);
    std::vector<T> stream(input, input + x.numel());
    for (int64_t layer = 0; layer < layers; layer++) {
      const auto& [of_rows, of_pieces] = caches.at(cache_indices[layer]);
      const Keys<T> keys(segments, of_rows, of_pieces, cache_layers[layer], rows, groups, size);
      const Heads layer_heads{groups, queries, size, static_cast<float>(scales[layer]), static_cast<float>(softcap)};
      RotaryTable rotary;
      if (ropes[layer] >= 0) rotary = {tables[2 * ropes[layer]].data(), tables[2 * ropes[layer] + 1].data(), angles[2 * ropes[layer]].size(-1)};
      Block<T> block{choices, layer_heads, rotary, rows, x.size(1)};
      block.set_weights(weights, all_adapters, layer);
      stream = block.forward(std::move(stream), keys, windows[cache_indices[layer]]);
    }
    std::copy(stream.begin(), stream.end(), y.mutable_data_ptr<T>());
  });
  return y;
}

}  // namespace
