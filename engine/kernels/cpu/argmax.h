// Greedy decoding: the index of the largest logit, and whether it is a finite number.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>

#include "parallel.h"
#include "vectors.h"

namespace {

// The largest number; NaN if any is NaN.
template <typename T>
float largest(const T* x, int64_t size) {
  Vec maxima(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + PAIR <= size; i += PAIR) {
    const Pair part = load(x + i);
    maxima = at::vec::maximum(maxima, at::vec::maximum(part.low, part.high));  // a NaN stays a NaN
  }
  float maximum = max(maxima);
  for (; i < size && !std::isnan(maximum); i++) {
    const float number = x[i];
    if (number > maximum || std::isnan(number)) maximum = number;
  }
  return maximum;
}

// The first index of the largest number; -1 if any number is NaN, or the largest is infinite.
template <typename T>
int64_t argmax_row(const T* x, int64_t size) {
  constexpr int64_t BLOCK = 2048;
  float maximum = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (int64_t first = 0; first < size; first += BLOCK) {
    const float of_block = largest(x + first, std::min(BLOCK, size - first));
    if (std::isnan(of_block)) return -1;
    if (of_block > maximum) maximum = of_block, i = first;
  }
  if (!std::isfinite(maximum)) return -1;
  while (static_cast<float>(x[i]) != maximum) i++;
  return i;
}

// x [R, V] -> [R] (int64)
at::Tensor argmax(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) > 0 && x.stride(1) == 1, "argmax: ", x.sizes());
  at::Tensor y = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    int64_t* indices = y.mutable_data_ptr<int64_t>();
    parallel_rows(x.size(0), x.size(1) * static_cast<int64_t>(sizeof(T)), 1, [&](int64_t row, int64_t end) {
      for (; row < end; row++) indices[row] = argmax_row(x.const_data_ptr<T>() + row * x.stride(0), x.size(1));
    });
  });
  return y;
}

}  // namespace
