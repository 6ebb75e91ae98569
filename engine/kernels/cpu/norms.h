// RMSNorm and LayerNorm of rows, as in engine/layers/norms.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "parallel.h"
#include "vectors.h"

namespace {

// Round to the type of the stored numbers.
inline Pair rounded(Pair x, float) {
  return x;
}

inline Pair rounded(Pair x, BFloat16) {
  const auto [low, high] = at::vec::convert_bfloat16_float(to_bfloat16(x));
  return {low, high};
}

enum class NormKind { rms, rms_float32, rms_plus_one, layer };

inline NormKind norm_kind(c10::string_view name) {
  if (name == "RMS") return NormKind::rms;
  if (name == "RMS, float32") return NormKind::rms_float32;
  if (name == "RMS, 1 + w") return NormKind::rms_plus_one;
  TORCH_CHECK(name == "layer" || name == "layer, no weights", "unknown norm ", name);
  return NormKind::layer;
}

template <typename T>
struct Norm {
  NormKind kind;
  float eps;
  const T *weight = nullptr, *bias = nullptr;

  // x [size] -> y [size]; x and y may be the same array.
  void operator()(const T* x, T* y, int64_t size) const {
    float mean = 0.0f;
    if (kind == NormKind::layer) {
      Vec total(0.0f);
      for_pairs(size, [&](int64_t i, int64_t count) {
        const Pair part = load(x + i, count);
        total = total + (part.low + part.high);
      });
      mean = sum(total) / size;
    }
    Vec squares(0.0f);
    const Vec means(mean);
    int64_t i = 0;
    for (; i + PAIR <= size; i += PAIR) {
      const Pair part = load(x + i);
      const Vec low = part.low - means, high = part.high - means;
      squares = at::vec::fmadd(low, low, at::vec::fmadd(high, high, squares));
    }
    float square = sum(squares);
    for (; i < size; i++) square += (static_cast<float>(x[i]) - mean) * (static_cast<float>(x[i]) - mean);
    const Vec scale(1.0f / std::sqrt(square / size + eps)), one(1.0f);

    for_pairs(size, [&](int64_t i, int64_t count) {
      Pair part = load(x + i, count);
      part = {(part.low - means) * scale, (part.high - means) * scale};
      if (kind == NormKind::rms) part = rounded(part, T());
      if (weight != nullptr) {
        Pair w = load(weight + i, count);
        if (kind == NormKind::rms_plus_one) w = {w.low + one, w.high + one};
        part = {part.low * w.low, part.high * w.high};
      }
      if (bias != nullptr) {
        const Pair b = load(bias + i, count);
        part = {part.low + b.low, part.high + b.high};
      }
      store(y + i, part, count);
    });
  }
};

// x [..., D], weight [D] -> [..., D] (Zhang & Sennrich 2019).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, c10::string_view kind) {
  const int64_t size = weight.numel();
  TORCH_CHECK(x.dim() && x.size(-1) == size && weight.is_contiguous(), "rms_norm: ", x.sizes(), " by ", size);
  const at::Tensor input = x.contiguous();
  at::Tensor y = at::empty(x.sizes(), x.options());
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Norm<T> norm{norm_kind(kind), static_cast<float>(eps), weight.const_data_ptr<T>()};
    const T* const from = input.const_data_ptr<T>();
    T* const to = y.mutable_data_ptr<T>();
    parallel_rows(size ? input.numel() / size : 0, size * sizeof(T), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) norm(from + row * size, to + row * size, size);
    });
  });
  return y;
}

// x, delta [N, D] -> x + delta, rounded, and its norm with weight and bias [D], if there are any.
std::tuple<at::Tensor, at::Tensor> add_norm(const at::Tensor& x, const at::Tensor& delta, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
                                            c10::string_view kind) {
  const int64_t size = x.size(-1);
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && delta.is_contiguous() && delta.sizes() == x.sizes() && delta.scalar_type() == x.scalar_type(), "add_norm: ", x.sizes(), " and ", delta.sizes());
  for (const auto& each : {weight, bias}) TORCH_CHECK(!each || (each->numel() == size && each->is_contiguous() && each->scalar_type() == x.scalar_type()), "add_norm: ", x.sizes(), " by ", each->sizes());
  at::Tensor total = at::empty(x.sizes(), x.options()), y = at::empty(x.sizes(), x.options());
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Norm<T> norm{norm_kind(kind), static_cast<float>(eps), weight ? weight->const_data_ptr<T>() : nullptr, bias ? bias->const_data_ptr<T>() : nullptr};
    const T *const a = x.const_data_ptr<T>(), *const b = delta.const_data_ptr<T>();
    T *const sums = total.mutable_data_ptr<T>(), *const to = y.mutable_data_ptr<T>();
    parallel_rows(x.size(0), 2 * size * sizeof(T), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * size; at < end * size; at += size) {
        for_pairs(size, [&](int64_t i, int64_t count) {
          const Pair p = load(a + at + i, count), q = load(b + at + i, count);
          store(sums + at + i, {p.low + q.low, p.high + q.high}, count);
        });
        norm(sums + at, to + at, size);
      }
    });
  });
  return {total, y};
}

}  // namespace
