// One new token of 1 to 4 rows through a decoder's block, as `Block` in engine/models/decoder.py has it.
//
// Sums are in float32; what PyTorch would round between two operators is rounded here, but for the scores.
#pragma once

#include "activations.h"
#include "attention.h"
#include "linear.h"
#include "norms.h"

namespace {

// A block's choices: `DecoderConfig`'s, under the same names.
struct Choices {
  Heads heads;
  NormKind norm;
  float eps, clip;  // clip 0: none
  c10::string_view activation, qk_norm;
  bool norm_before, norm_after, parallel, one_norm, gated;
};

using Optional = std::optional<at::Tensor>;
using Optionals = c10::List<Optional>;

// A weight and its bias, two by two in a list.
struct Pairs {
  const Optionals& list;

  template <typename T>
  const T* weight(int64_t i) const { return pointer<T>(2 * i); }
  template <typename T>
  const T* bias(int64_t i) const { return pointer<T>(2 * i + 1); }
  int64_t rows(int64_t i) const { return list.get(2 * i)->size(0); }

  template <typename T>
  const T* pointer(int64_t i) const {
    const Optional x = list.get(i);
    TORCH_CHECK(!x || x->is_contiguous(), "block: a weight in one piece");
    return x ? x->const_data_ptr<T>() : nullptr;
  }
};

enum Matrices { QKV, OUT, UP, DOWN };
enum Norms { ATTENTION_BEFORE, ATTENTION_AFTER, MLP_BEFORE, MLP_AFTER, Q, K };

template <typename T>
struct Block {
  const Choices& is;
  Pairs matrices, norms;
  int64_t rows, hidden;

  // x [rows, n] -> [rows, m]
  std::vector<T> product(Matrices which, const std::vector<T>& x) const {
    const int64_t k = x.size() / rows, n = matrices.rows(which);
    std::vector<T> y(rows * n);
    few_rows(Product<T>{matrices.weight<T>(which), matrices.bias<T>(which), x.data(), y.data(), n, k, k}, rows);
    return y;
  }

  void normalize(Norms which, T* x, int64_t size) const {
    Norm<T>{is.norm, is.eps, norms.weight<T>(which), norms.bias<T>(which)}(x, x, size);
  }

  // Where it is `wanted`, else x as it is.
  std::vector<T> normalized(bool wanted, Norms which, std::vector<T> x) const {
    for (int64_t row = 0; wanted && row < rows; row++) normalize(which, x.data() + row * hidden, hidden);
    return x;
  }

  std::vector<T> attention(const std::vector<T>& x, const float* cos, const float* sin, int64_t half, const std::vector<Place>& places, int64_t layer) const {
    std::vector<T> qkv = product(QKV, x);
    if (is.clip != 0.0f)
      for (T& number : qkv) number = std::isnan(static_cast<float>(number)) ? number : std::clamp<T>(number, -is.clip, is.clip);
    const int64_t q_size = is.heads.q_size(), kv_size = is.heads.kv_size();
    for (int64_t row = 0; !is.qk_norm.empty() && row < rows; row++) {
      T *q = qkv.data() + row * (q_size + 2 * kv_size), *k = q + q_size;
      const bool whole = is.qk_norm == "width";
      for (int64_t i = 0; i < q_size; i += whole ? q_size : is.heads.size) normalize(Q, q + i, whole ? q_size : is.heads.size);
      for (int64_t i = 0; i < kv_size; i += whole ? kv_size : is.heads.size) normalize(K, k + i, whole ? kv_size : is.heads.size);
    }
    std::vector<T> attended(rows * q_size);
    attend(is.heads, qkv.data(), cos, sin, half, places, layer, attended.data());
    return product(OUT, attended);
  }

  std::vector<T> mlp(const std::vector<T>& x) const {
    const std::vector<T> up = product(UP, x);
    const int64_t width = up.size() / rows, size = is.gated ? width / 2 : width;
    std::vector<T> inner(rows * size);
    for (int64_t row = 0; row < rows; row++) {
      const T* from = up.data() + row * width;
      activate(is.activation, from, is.gated ? from + size : nullptr, inner.data() + row * size, size);
    }
    return product(DOWN, inner);
  }

  static void add(std::vector<T>& x, const std::vector<T>& y) {
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(x[i]) + static_cast<float>(y[i]);
  }

  std::vector<T> forward(std::vector<T> x, const float* cos, const float* sin, int64_t half, const std::vector<Place>& places, int64_t layer) const {
    const std::vector<T> read = normalized(is.norm_before, ATTENTION_BEFORE, x);
    const std::vector<T> attended = normalized(is.norm_after, ATTENTION_AFTER, attention(read, cos, sin, half, places, layer));
    const std::vector<T> before = x;
    add(x, attended);
    const std::vector<T> mlp_read = is.one_norm ? read : normalized(is.norm_before, MLP_BEFORE, is.parallel ? before : x);
    add(x, normalized(is.norm_after, MLP_AFTER, mlp(mlp_read)));
    return x;
  }
};

// The cosines or sines of some rows, none where positions do not turn.
inline std::vector<float> angles(const Optional& table, int64_t rows, int64_t size) {
  if (!table) return {};
  TORCH_CHECK(table->is_contiguous() && table->size(0) == rows && 2 * table->size(-1) <= size, "block: angles ", table->sizes());
  auto copied = [&](auto zero) {
    const auto* numbers = table->const_data_ptr<decltype(zero)>();
    return std::vector<float>(numbers, numbers + table->numel());
  };
  return table->scalar_type() == at::kBFloat16 ? copied(BFloat16()) : copied(0.0f);
}

// x [R, hidden] -> [R, hidden]; matrices and norms are weights and biases in the order of the enumerations above; cos
// and sin [R, 1, half] or none; caches: each row's segment, of which the tokens `first` to `last` are seen.
at::Tensor block(const at::Tensor& x, const Optional& cos, const Optional& sin, at::TensorList caches, at::IntArrayRef first,
                 at::IntArrayRef last, int64_t layer, const Optionals& matrices, const Optionals& norms, at::IntArrayRef heads,
                 c10::string_view norm, c10::string_view qk_norm, c10::string_view activation, double eps, double scale,
                 double softcap, double clip, bool norm_before, bool norm_after, bool parallel, bool one_norm, bool gated) {
  const int64_t rows = x.size(0);
  const Choices choices{
      {heads[0], heads[1], heads[2], static_cast<float>(scale), static_cast<float>(softcap)},
      norm_kind(norm), static_cast<float>(eps), static_cast<float>(clip), activation, qk_norm,
      norm_before, norm_after, parallel, one_norm, gated};
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && 1 <= rows && rows <= MOST_ROWS, "block: x ", x.sizes());
  TORCH_CHECK(static_cast<int64_t>(caches.size()) == rows && first.size() == caches.size() && last.size() == caches.size(), "block: places of ", rows, " rows");
  std::vector<Place> places;
  for (int64_t row = 0; row < rows; row++) {
    const at::Tensor& cache = caches[row];
    TORCH_CHECK(cache.dim() == 5 && cache.is_contiguous() && cache.scalar_type() == x.scalar_type() && cache.size(2) == heads[0] && cache.size(4) == heads[2], "block: a cache of ", cache.sizes());
    TORCH_CHECK(0 <= first[row] && first[row] <= last[row] && last[row] < cache.size(3) && layer < cache.size(0), "block: tokens ", first[row], " to ", last[row]);
    places.push_back({cache, first[row], last[row]});
  }
  const int64_t half = cos ? cos->size(-1) : 0;
  at::Tensor y = at::empty(x.sizes(), x.options());
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    const std::vector<float> cosines = angles(cos, rows, heads[2]), sines = angles(sin, rows, heads[2]);
    const std::vector<T> out = Block<T>{choices, {matrices}, {norms}, rows, x.size(1)}.forward(
        {from, from + x.numel()}, cosines.data(), sines.data(), half, places, layer);
    std::copy(out.begin(), out.end(), y.mutable_data_ptr<T>());
  };
  x.scalar_type() == at::kBFloat16 ? run(BFloat16()) : run(0.0f);
  return y;
}

}  // namespace
