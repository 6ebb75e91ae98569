// One new token of 1 to 8 rows through a Mamba's mixer, as `Mixer` in engine/models/mamba.py has it.
#pragma once

#include <cmath>
#include <tuple>

#include "activations.h"
#include "linear.h"

namespace {

constexpr int64_t CHANNELS = 256;  // that are worth a thread

// log(1 + e^x), and x itself where that is the same (PyTorch's threshold).
inline Vec softplus(Vec x) {
  return Vec::blendv(x.exp().log1p(), x, x > Vec(20.0f));
}

// h = exp(dt a) h + dt b x for one channel's state of `size` numbers -> c h; a is -exp(a_log).
template <typename T>
float advance(const T* a_log, float dt, const float* b, const float* c, float x, const float* before, float* h, int64_t size) {
  Vec total(0.0f);
  const Vec step(dt), added(dt * x);
  for (int64_t n = 0; n < size; n += LANES) {
    const int64_t count = std::min(LANES, size - n);
    const Vec decay = (step * load(a_log + n, std::min(count, PAIR)).low.exp().neg()).exp();
    const Vec now = at::vec::fmadd(decay, Vec::loadu(before + n, count), added * Vec::loadu(b + n, count));
    now.store(h + n, count);
    total = at::vec::fmadd(now, Vec::loadu(c + n, count), total);
  }
  return sum(total);
}

template <typename T>
struct Mixer {
  const Matrix<T> in, by_x, by_dt, out_of;
  const at::Tensor &conv_weight, &dt_bias, &a_log, &d;
  const std::optional<at::Tensor>& conv_bias;
  int64_t rows;

  // x [rows, hidden], conv [rows, K - 1, C] and ssm [rows, C, N] -> out [rows, hidden] and both anew.
  std::vector<T> forward(const T* x, const T* conv, const float* ssm, T* new_conv, float* new_ssm) const {
    const int64_t channels = d.numel(), taps = conv_weight.size(2), size = a_log.size(1), rank = by_dt.k, kept = (taps - 1) * channels;
    const std::vector<T> both = product(in, x, rows, in.k);
    const T *tap = conv_weight.const_data_ptr<T>(), *shift = pointer<T>(conv_bias);
    std::vector<T> inner(rows * channels);
    for (int64_t row = 0; row < rows; row++) {
      const T *before = conv + row * kept, *now = both.data() + row * 2 * channels;
      T* out = inner.data() + row * channels;
      for (int64_t c = 0; c < channels; c++) {
        float total = shift ? static_cast<float>(shift[c]) : 0.0f;
        for (int64_t t = 0; t + 1 < taps; t++) total += static_cast<float>(before[t * channels + c]) * static_cast<float>(tap[c * taps + t]);
        out[c] = total + static_cast<float>(now[c]) * static_cast<float>(tap[c * taps + taps - 1]);
      }
      activate<T>("silu", out, nullptr, out, channels);
      std::copy(before + channels, before + kept, new_conv + row * kept);
      std::copy(now, now + channels, new_conv + row * kept + kept - channels);
    }

    const std::vector<T> parts = product(by_x, inner.data(), rows, channels);  // dt, B, C of each row
    const int64_t width = rank + 2 * size;
    const std::vector<T> steps = product(by_dt, parts.data(), rows, width);
    std::vector<T> y(rows * channels);
    for (int64_t row = 0; row < rows; row++) {
      const T* own = parts.data() + row * width;
      const std::vector<float> b(own + rank, own + rank + size), c(own + rank + size, own + width);
      const T *gate = both.data() + row * 2 * channels + channels, *bias = dt_bias.const_data_ptr<T>();
      std::vector<T> open(channels);
      activate<T>("silu", gate, nullptr, open.data(), channels);
      at::parallel_for(0, channels, CHANNELS, [&](int64_t first, int64_t last) {
        std::vector<float> dt(last - first);
        for (int64_t i = 0; i < last - first; i += LANES) {
          const int64_t count = std::min(LANES, last - first - i);
          const Vec step = load(steps.data() + row * channels + first + i, count).low;
          softplus(step + load(bias + first + i, count).low).store(dt.data() + i, count);
        }
        for (int64_t channel = first; channel < last; channel++) {
          const int64_t place = row * channels + channel;
          const float input = inner[place];
          const float seen = advance(a_log.const_data_ptr<T>() + channel * size, dt[channel - first], b.data(), c.data(), input,
                                     ssm + place * size, new_ssm + place * size, size);
          y[place] = (seen + static_cast<float>(d.const_data_ptr<T>()[channel]) * input) * static_cast<float>(open[channel]);
        }
      });
    }
    return product(out_of, y.data(), rows, channels);
  }
};

// x [R, hidden], conv [R, K - 1, C], ssm [R, C, N] (float32) -> out [R, hidden], and conv and ssm after it.
std::tuple<at::Tensor, at::Tensor, at::Tensor> mamba(
    const at::Tensor& x, const at::Tensor& conv, const at::Tensor& ssm, const at::Tensor& in_weight, const std::optional<at::Tensor>& in_scales, const std::optional<at::Tensor>& in_bias,
    const at::Tensor& conv_weight, const std::optional<at::Tensor>& conv_bias, const at::Tensor& x_weight, const at::Tensor& dt_weight,
    const at::Tensor& dt_bias, const at::Tensor& a_log, const at::Tensor& d, const at::Tensor& out_weight, const std::optional<at::Tensor>& out_scales,
    const std::optional<at::Tensor>& out_bias) {
  const int64_t rows = x.size(0), channels = d.numel(), size = a_log.size(1), taps = conv_weight.size(2);
  TORCH_CHECK(1 <= rows && rows <= MOST_ROWS && x.is_contiguous(), "mamba: x ", x.sizes());
  TORCH_CHECK(conv.sizes() == at::IntArrayRef({rows, taps - 1, channels}) && ssm.sizes() == at::IntArrayRef({rows, channels, size}), "mamba: states ", conv.sizes(), " ", ssm.sizes());
  TORCH_CHECK(x_weight.size(0) == dt_weight.size(1) + 2 * size && x_weight.size(1) == channels, "mamba: ", channels, " channels");
  TORCH_CHECK(dt_weight.size(0) == channels && dt_bias.numel() == channels && a_log.size(0) == channels, "mamba: ", channels, " channels");
  for (const at::Tensor* weight : {&conv_weight, &dt_bias, &a_log, &d, &conv, &ssm})
    TORCH_CHECK(weight->is_contiguous(), "mamba: tensors in one piece");
  at::Tensor out = at::empty(x.sizes(), x.options()), new_conv = at::empty(conv.sizes(), conv.options()), new_ssm = at::empty(ssm.sizes(), ssm.options());
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Mixer<T> mixer{matrix<T>(in_weight, in_scales, in_bias), matrix<T>(x_weight, {}, {}), matrix<T>(dt_weight, {}, {}),
                         matrix<T>(out_weight, out_scales, out_bias), conv_weight, dt_bias, a_log, d, conv_bias, rows};
    TORCH_CHECK(mixer.in.n == 2 * channels && mixer.in.k == x.size(1) && mixer.out_of.n == x.size(1) && mixer.out_of.k == channels, "mamba: x ", x.sizes(), ", ", channels, " channels");
    const std::vector<T> y = mixer.forward(x.const_data_ptr<T>(), conv.const_data_ptr<T>(), ssm.const_data_ptr<float>(),
                                           new_conv.mutable_data_ptr<T>(), new_ssm.mutable_data_ptr<float>());
    std::copy(y.begin(), y.end(), out.mutable_data_ptr<T>());
  });
  return {out, new_conv, new_ssm};
}

}  // namespace
