// Activation functions, as in engine/layers/mlp.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <type_traits>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

// x / (1 + e^-y). For bfloat16 a few float32 roundings do not matter, and a third of the time is enough: the power does not
// overflow, so the quotient may be an approximate inverse with a step of Newton's method.
template <typename T>
inline Vec times_sigmoid(Vec x, Vec y) {
  if constexpr (std::is_same_v<T, float>) return x / (Vec(1.0f) + y.neg().exp());
  const Vec power = exp2(y.abs() * Vec(-1.44269504f));
  const Vec numerator = Vec::blendv(x * power, x, y >= Vec(0.0f)), denominator = Vec(1.0f) + power;
#if defined(CPU_CAPABILITY_AVX512)
  const Vec inverse = _mm512_rcp14_ps(denominator);
  return numerator * inverse * (Vec(2.0f) - denominator * inverse);
#else
  return numerator / denominator;
#endif
}

template <typename T>
inline Vec silu(Vec x) {
  return times_sigmoid<T>(x, x);
}

inline Vec gelu(Vec x) {
  return x * Vec(0.5f) * (Vec(1.0f) + (x * Vec(0.70710678f)).erf());
}

// x / 2 (1 + tanh(y / 2)), with y / 2 = sqrt(2 / pi) (x + 0.044715 x^3).
template <typename T>
inline Vec gelu_tanh(Vec x) {
  return times_sigmoid<T>(x, Vec(1.59576912f) * (x + Vec(0.044715f) * x * x * x));
}

inline Vec relu(Vec x) {
  return at::vec::maximum(x, Vec(0.0f));
}

// x [size] -> y = act(x), times `up` [size] if it is not null (Shazeer 2020).
template <typename T, typename F>
void activate_with(F act, const T* x, const T* up, T* y, int64_t size) {
  for_pairs(size, [&](int64_t i, int64_t count) {
    Pair part = load(x + i, count);
    part = {act(part.low), act(part.high)};
    if (up != nullptr) {
      const Pair factor = load(up + i, count);
      part = {part.low * factor.low, part.high * factor.high};
    }
    store(y + i, part, count);
  });
}

template <typename T>
void activate(c10::string_view name, const T* x, const T* up, T* y, int64_t size) {
  if (name == "silu") activate_with(silu<T>, x, up, y, size);
  else if (name == "gelu") activate_with(gelu, x, up, y, size);
  else if (name == "gelu_tanh") activate_with(gelu_tanh<T>, x, up, y, size);
  else if (name == "relu") activate_with(relu, x, up, y, size);
}

// Called before loops that several threads share, in which nothing may throw.
inline void check_activation(c10::string_view name) {
  TORCH_CHECK(name == "silu" || name == "gelu" || name == "gelu_tanh" || name == "relu", "unknown activation ", name);
}

// x [..., 2 n], the gate and the factor -> act(gate) * factor [..., n], rounded once.
at::Tensor gated_activation(const at::Tensor& x, c10::string_view activation) {
  TORCH_CHECK(x.dim() && x.size(-1) % 2 == 0, "gated_activation: ", x.sizes());
  check_activation(activation);
  const at::Tensor input = x.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  const int64_t size = sizes.back() /= 2;
  at::Tensor y = at::empty(sizes, x.options());
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* const from = input.const_data_ptr<T>();
    T* const to = y.mutable_data_ptr<T>();
    parallel_rows(size ? y.numel() / size : 0, 2 * size * sizeof(T), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) activate(activation, from + 2 * row * size, from + (2 * row + 1) * size, to + row * size, size);
    });
  });
  return y;
}

}  // namespace
