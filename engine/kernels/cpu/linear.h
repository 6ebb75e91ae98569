// y = x Wᵀ + b for one to 32 rows of x, in any weight format, plus an adapter's branch. Sums are float32, rounded once.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "adapter.h"
#include "dense.h"
#include "panels.h"
#include "panels_tiles.h"
#include "records.h"
#include "tables.h"

namespace {

// A weight [n, k], dense, in panels or in records, a bias [n] or null, and an adapter or null. A norm has a weight [n] and
// k = 0.
template <typename T>
struct Matrix {
  const T *weight = nullptr, *bias = nullptr;
  int64_t n = 0, k = 0;
  Panels panels{};
  Records records{};
  const Adapter<T>* adapter = nullptr;

  bool exists() const { return weight != nullptr || panels.codes != nullptr || records.bytes != nullptr; }
};

using Optionals = c10::List<std::optional<at::Tensor>>;

// The data of a contiguous tensor, with `count` numbers unless that is 0; null if there is no tensor.
template <typename T>
const T* pointer(const std::optional<at::Tensor>& x, int64_t count = 0) {
  TORCH_CHECK(!x || (x->is_contiguous() && (count == 0 || x->numel() == count)), "a weight must be contiguous with the expected size, not ", x->sizes());
  return x ? x->const_data_ptr<T>() : nullptr;
}

template <typename T>
Matrix<T> matrix(const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias) {
  if (scales && scales->scalar_type() == at::kLong) {
    const Records blocks = records(weight, *scales);
    return {nullptr, pointer<T>(bias, blocks.n), blocks.n, blocks.k, {}, blocks};
  }
  if (scales) {
    const Panels quantized = panels(weight, *scales);
    return {nullptr, pointer<T>(bias, quantized.n), quantized.n, quantized.k, quantized};
  }
  return {pointer<T>(weight), pointer<T>(bias, weight.size(0)), weight.size(0), weight.dim() == 2 ? weight.size(1) : 0};
}

template <typename T>
Matrix<T> with_adapter(Matrix<T> w, const Adapter<T>* adapter) {
  TORCH_CHECK(adapter == nullptr || (adapter->k == w.k && adapter->n <= w.n), "an adapter of [", adapter->n, ", ", adapter->k, "] for a weight [", w.n, ", ", w.k, "]");
  w.adapter = adapter;
  return w;
}

// Writes the products of a matrix in panels: adds the bias and the adapter's branch, and rounds.
template <typename T>
struct Writer {
  const Matrix<T>& w;
  const Branch<T>* branch;
  T* y;

  void begin() const {
    if (branch != nullptr) branch->compute_hidden();
  }

  // `count` numbers of row `m` of y, from column `row` on.
  void operator()(int64_t m, int64_t row, float* numbers, int64_t count) const {
    for (int64_t i = 0; i < count && w.bias != nullptr; i++) numbers[i] += static_cast<float>(w.bias[row + i]);
    if (branch != nullptr) branch->add_to(numbers, m, row, count);
    at::vec::convert(numbers, y + m * w.n + row, count);
  }
};

// x [rows, k], with rows `x_stride` apart -> y [rows, n].
template <typename T>
void multiply(const Matrix<T>& w, const T* x, int64_t rows, int64_t x_stride, T* y) {
  const bool is_dense = w.weight != nullptr;
  const FloatRows wide_x(x, x_stride, (is_dense && !HAS_TILES<T>) || w.adapter != nullptr ? rows : 0, w.k);
  std::optional<Branch<T>> maybe;
  const Branch<T>* const branch = w.adapter != nullptr ? &maybe.emplace(*w.adapter, rows, wide_x) : nullptr;
  if constexpr (HAS_TILES<T>)
    if (is_dense) {
      const PackedRows packed_x(x, x_stride, rows, w.k);
      return Product<T>{w.weight, w.bias, y, rows, w.n, w.k, wide_x, branch, &packed_x}.run();
    }
  if (is_dense) return Product<T>{w.weight, w.bias, y, rows, w.n, w.k, wide_x, branch}.run();
  const Writer<T> write{w, branch, y};
  if (w.records.bytes != nullptr) return w.records.run(x, x_stride, rows, write);
  const auto run = [&](const auto& quantized_x) { multiply_panels(w.panels, w.panels, quantized_x, rows, write); };
  if (w.panels.table != nullptr) multiply_panels(w.panels, Tables(w.panels), QuantizedX8<32>(x, x_stride, rows, w.k), rows, write);
#if defined(BARELOOP_AMX)
  else if (w.panels.bits == 8) multiply_byte_panels(w.panels, ByteRows(x, x_stride, rows, w.k), rows, write);
#else
  else if (w.panels.bits == 8) run(QuantizedX16(x, x_stride, rows, w.k));
#endif
  else if (w.panels.group == 16) run(QuantizedX8<16>(x, x_stride, rows, w.k));
  else run(QuantizedX8<32>(x, x_stride, rows, w.k));
}

template <typename T>
std::vector<T> product(const Matrix<T>& w, const T* x, int64_t rows, int64_t x_stride) {
  std::vector<T> y(rows * w.n);
  multiply(w, x, rows, x_stride, y.data());
  return y;
}

// Call f(matrix, x, x_stride, y) with the weight [out, in] of x's dtype, in panels with scales, or in records with their
// parts, the bias [out], an adapter or none, and the data of x [M, in] and of y. -> y [M, out]
template <typename F>
at::Tensor with_matrix(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& adapter, const std::optional<at::Tensor>& adapter_sizes, F f) {
  TORCH_CHECK(x.dim() == 2, "linear: rows [M, in], not ", x.sizes());
  const at::Tensor input = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor y;
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Adapters<T> adapters(adapter, adapter_sizes, 1);
    const Matrix<T> w = with_adapter(matrix<T>(weight, scales, bias), adapters[0]);
    TORCH_CHECK(x.size(1) == w.k && w.k > 0, "linear: ", x.sizes(), " by [", w.n, ", ", w.k, "]");
    y = at::empty({x.size(0), w.n}, x.options());
    f(w, input.const_data_ptr<T>(), input.stride(0), y.mutable_data_ptr<T>());
  });
  return y;
}

// x times a weight in any format, plus the bias and the adapter's branch.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& adapter, const std::optional<at::Tensor>& adapter_sizes) {
  TORCH_CHECK(1 <= x.size(0) && x.size(0) <= MAX_ROWS, "linear: 1 to ", MAX_ROWS, " rows, not ", x.sizes());
  return with_matrix(x, weight, scales, bias, adapter, adapter_sizes, [&](const auto& w, const auto* numbers, int64_t stride, auto* y) { multiply(w, numbers, x.size(0), stride, y); });
}

}  // namespace
