// Activations of one row, as engine/layers.py has them.
#pragma once

#include "vectors.h"

namespace {

inline Vec silu(Vec x) {
  return x / (Vec(1.0f) + x.neg().exp());
}

inline Vec gelu(Vec x) {
  return x * Vec(0.5f) * (Vec(1.0f) + (x * Vec(0.70710678f)).erf());
}

inline Vec gelu_tanh(Vec x) {
  return x * Vec(0.5f) * (Vec(1.0f) + (Vec(0.79788456f) * (x + Vec(0.044715f) * x * x * x)).tanh());
}

inline Vec relu(Vec x) {
  return at::vec::maximum(x, Vec(0.0f));
}

// x [size] -> y = act(x), times `up` [size] where there is one (Shazeer 2020).
template <typename T, typename F>
void activate_by(F act, const T* x, const T* up, T* y, int64_t size) {
  by_pairs(size, [&](int64_t place, int64_t count) {
    Pair part = load(x + place, count);
    part = {act(part.low), act(part.high)};
    if (up != nullptr) {
      const Pair other = load(up + place, count);
      part = {part.low * other.low, part.high * other.high};
    }
    store(y + place, part, count);
  });
}

template <typename T>
void activate(c10::string_view name, const T* x, const T* up, T* y, int64_t size) {
  if (name == "silu") activate_by(silu, x, up, y, size);
  else if (name == "gelu") activate_by(gelu, x, up, y, size);
  else if (name == "gelu_tanh") activate_by(gelu_tanh, x, up, y, size);
  else if (name == "relu") activate_by(relu, x, up, y, size);
  else TORCH_CHECK(false, "no activation ", name);
}

}  // namespace
