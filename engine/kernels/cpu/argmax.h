// Greedy's choice: the largest of many numbers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>

#include "shares.h"
#include "vectors.h"

namespace {

// The place of the largest number, of several the first; a NaN is larger than all.
template <typename T>
int64_t argmax_row(const T* x, int64_t size) {
  Vec highest(-std::numeric_limits<float>::infinity());
  int64_t place = 0;
  for (; place + PAIR <= size; place += PAIR) {
    const Pair part = load(x + place);
    highest = at::vec::maximum(highest, at::vec::maximum(part.low, part.high));
  }
  float most = largest(highest);
  for (; place < size; place++) {
    const float number = x[place];
    if (number > most || std::isnan(number)) most = number;
    if (std::isnan(most)) break;
  }
  const bool is_nan = std::isnan(most);
  for (int64_t i = 0; i < size; i++)
    if (is_nan ? std::isnan(static_cast<float>(x[i])) : static_cast<float>(x[i]) == most) return i;
  return 0;
}

// x [R, V] -> [R] (int64)
at::Tensor argmax(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) > 0 && x.stride(1) == 1, "argmax: ", x.sizes());
  at::Tensor y = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t row = 0; row < x.size(0); row++)
      y.mutable_data_ptr<int64_t>()[row] = argmax_row(x.const_data_ptr<T>() + row * x.stride(0), x.size(1));
  });
  return y;
}

}  // namespace
