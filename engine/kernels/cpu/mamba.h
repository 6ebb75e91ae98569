// One new token of 1 to 32 rows through a Mamba mixer, as `Mixer` in engine/models/mamba.py.
#pragma once

#include <cmath>
#include <tuple>

#include "activations.h"
#include "linear.h"

namespace {

// log(1 + e^x); x itself above PyTorch's threshold, where that is the same.
inline Vec softplus(Vec x) {
  return Vec::blendv(x.exp().log1p(), x, x > Vec(20.0f));
}

// Update one channel's state of `size` numbers, h = exp(dt a) h + dt b x with a = -exp(a_log); -> c h.
template <typename T>
float advance(const T* a_log, float dt, const float* b, const float* c, float x, const float* previous, float* h, int64_t size) {
  Vec total(0.0f);
  const Vec step(dt), input(dt * x);
  for (int64_t n = 0; n < size; n += LANES) {
    const int64_t count = std::min(LANES, size - n);
    const Vec decay = (step * load(a_log + n, std::min(count, PAIR)).low.exp().neg()).exp();
    const Vec updated = at::vec::fmadd(decay, Vec::loadu(previous + n, count), input * Vec::loadu(b + n, count));
    updated.store(h + n, count);
    total = at::vec::fmadd(updated, Vec::loadu(c + n, count), total);
  }
  return sum(total);
}

template <typename T>
struct Mixer {
  const Matrix<T> in_proj, x_proj, dt_proj, out_proj;
  const at::Tensor &conv_weight, &dt_bias, &a_log, &d;
  const std::optional<at::Tensor>& conv_bias;
  int64_t rows;

  // x [rows, hidden], conv [rows, K - 1, C] and ssm [rows, C, N] -> out [rows, hidden], and the new conv and ssm.
  std::vector<T> forward(const T* x, const T* conv, const float* ssm, T* new_conv, float* new_ssm) const {
    const int64_t channels = d.numel(), taps = conv_weight.size(2), size = a_log.size(1), rank = dt_proj.k, conv_size = (taps - 1) * channels;
    const std::vector<T> x_and_gate = product(in_proj, x, rows, in_proj.k);
    const T *tap = conv_weight.const_data_ptr<T>(), *bias = pointer<T>(conv_bias);
    std::vector<T> inner(rows * channels);
    for (int64_t row = 0; row < rows; row++) {
      const T *previous = conv + row * conv_size, *current = x_and_gate.data() + row * 2 * channels;
      T* out = inner.data() + row * channels;
      for (int64_t c = 0; c < channels; c++) {
        float total = bias ? static_cast<float>(bias[c]) : 0.0f;
        for (int64_t t = 0; t + 1 < taps; t++) total += static_cast<float>(previous[t * channels + c]) * static_cast<float>(tap[c * taps + t]);
        out[c] = total + static_cast<float>(current[c]) * static_cast<float>(tap[c * taps + taps - 1]);
      }
      activate<T>("silu", out, nullptr, out, channels);
      std::copy(previous + channels, previous + conv_size, new_conv + row * conv_size);
      std::copy(current, current + channels, new_conv + row * conv_size + conv_size - channels);
    }

    const std::vector<T> parts = product(x_proj, inner.data(), rows, channels);  // dt, B, C of each row
    const int64_t width = rank + 2 * size;
    const std::vector<T> steps = product(dt_proj, parts.data(), rows, width);
    std::vector<T> y(rows * channels);
    for (int64_t row = 0; row < rows; row++) {
      const T* dt_b_c = parts.data() + row * width;
      const std::vector<float> b(dt_b_c + rank, dt_b_c + rank + size), c(dt_b_c + rank + size, dt_b_c + width);
      const T *gate = x_and_gate.data() + row * 2 * channels + channels, *dt_shift = dt_bias.const_data_ptr<T>();
      std::vector<T> gated(channels);
      activate<T>("silu", gate, nullptr, gated.data(), channels);
      parallel_rows(channels, size * static_cast<int64_t>(sizeof(T) + 2 * sizeof(float)), LANES, [&](int64_t first, int64_t last) {
        std::vector<float> dt(last - first);
        for (int64_t i = 0; i < last - first; i += LANES) {
          const int64_t count = std::min(LANES, last - first - i);
          const Vec step = load(steps.data() + row * channels + first + i, count).low;
          softplus(step + load(dt_shift + first + i, count).low).store(dt.data() + i, count);
        }
        for (int64_t channel = first; channel < last; channel++) {
          const int64_t index = row * channels + channel;
          const float input = inner[index];
          const float output = advance(a_log.const_data_ptr<T>() + channel * size, dt[channel - first], b.data(), c.data(), input,
                                     ssm + index * size, new_ssm + index * size, size);
          y[index] = (output + static_cast<float>(d.const_data_ptr<T>()[channel]) * input) * static_cast<float>(gated[channel]);
        }
      });
    }
    return product(out_proj, y.data(), rows, channels);
  }
};

// x [R, hidden], conv [R, K - 1, C], ssm [R, C, N] (float32) -> out [R, hidden], and the new conv and ssm.
// `adapters` and `adapter_sizes`: as for `Adapters`, of in_proj, x_proj, dt_proj and out_proj.
std::tuple<at::Tensor, at::Tensor, at::Tensor> mamba(
    const at::Tensor& x, const at::Tensor& conv, const at::Tensor& ssm, const at::Tensor& in_weight, const std::optional<at::Tensor>& in_scales, const std::optional<at::Tensor>& in_bias,
    const at::Tensor& conv_weight, const std::optional<at::Tensor>& conv_bias, const at::Tensor& x_weight, const at::Tensor& dt_weight,
    const at::Tensor& dt_bias, const at::Tensor& a_log, const at::Tensor& d, const at::Tensor& out_weight, const std::optional<at::Tensor>& out_scales,
    const std::optional<at::Tensor>& out_bias, const std::optional<at::Tensor>& adapters, const std::optional<at::Tensor>& adapter_sizes) {
  const int64_t rows = x.size(0), channels = d.numel(), size = a_log.size(1), taps = conv_weight.size(2);
  TORCH_CHECK(1 <= rows && rows <= MAX_ROWS && x.is_contiguous(), "mamba: x ", x.sizes());
  Pool::get().expect(true);
  TORCH_CHECK(conv.sizes() == at::IntArrayRef({rows, taps - 1, channels}) && ssm.sizes() == at::IntArrayRef({rows, channels, size}), "mamba: states ", conv.sizes(), " ", ssm.sizes());
  TORCH_CHECK(x_weight.size(0) == dt_weight.size(1) + 2 * size && x_weight.size(1) == channels, "mamba: ", channels, " channels");
  TORCH_CHECK(dt_weight.size(0) == channels && dt_bias.numel() == channels && a_log.size(0) == channels, "mamba: ", channels, " channels");
  for (const at::Tensor* weight : {&conv_weight, &dt_bias, &a_log, &d, &conv, &ssm})
    TORCH_CHECK(weight->is_contiguous(), "mamba: tensors must be contiguous");
  at::Tensor out = at::empty(x.sizes(), x.options()), new_conv = at::empty(conv.sizes(), conv.options()), new_ssm = at::empty(ssm.sizes(), ssm.options());
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Adapters<T> all_adapters(adapters, adapter_sizes, 4);
    const Mixer<T> mixer{with_adapter(matrix<T>(in_weight, in_scales, in_bias), all_adapters[0]), with_adapter(matrix<T>(x_weight, {}, {}), all_adapters[1]),
                         with_adapter(matrix<T>(dt_weight, {}, {}), all_adapters[2]), with_adapter(matrix<T>(out_weight, out_scales, out_bias), all_adapters[3]),
                         conv_weight, dt_bias, a_log, d, conv_bias, rows};
    TORCH_CHECK(mixer.in_proj.n == 2 * channels && mixer.in_proj.k == x.size(1) && mixer.out_proj.n == x.size(1) && mixer.out_proj.k == channels, "mamba: x ", x.sizes(), ", ", channels, " channels");
    const std::vector<T> y = mixer.forward(x.const_data_ptr<T>(), conv.const_data_ptr<T>(), ssm.const_data_ptr<float>(),
                                           new_conv.mutable_data_ptr<T>(), new_ssm.mutable_data_ptr<float>());
    std::copy(y.begin(), y.end(), out.mutable_data_ptr<T>());
  });
  return {out, new_conv, new_ssm};
}

}  // namespace
