// One new token of 1 to 32 rows through an RWKV block, as `Block` in engine/models/rwkv.py.
#pragma once

#include "linear.h"
#include "norms.h"

namespace {

inline Vec sigmoid(Vec x) {
  return Vec(1.0f) / (Vec(1.0f) + x.neg().exp());
}

// The weights of a block, in the order of `Block.kernel_weights`.
enum RwkvWeights {
  NORM_A, NORM_A_BIAS, DECAY, FIRST, MIX_K, MIX_V, MIX_R, KEY, VALUE, RECEPTANCE, OUTPUT,
  NORM_F, NORM_F_BIAS, FEED_MIX_K, FEED_MIX_R, FEED_KEY, FEED_RECEPTANCE, FEED_VALUE, RWKV_COUNT
};

// The memory of a row: the two inputs of the last token, and the two sums with a common exponent.
enum RwkvMemory { ATTENTION_INPUT, FEED_FORWARD_INPUT, VALUES, SUMS, EXPONENT, RWKV_MEMORY };

template <typename T>
struct RwkvBlock {
  at::TensorList weights;
  const Optionals& scales;
  const Adapters<T>& adapters;
  float eps;
  int64_t rows, hidden;

  const T* data(RwkvWeights which) const { return weights[which].const_data_ptr<T>(); }

  std::vector<T> times(RwkvWeights which, const std::vector<T>& x) const {
    const Matrix<T> w = weight_of(which);
    return product(w, x.data(), rows, w.k);
  }

  Matrix<T> weight_of(RwkvWeights which) const { return with_adapter(matrix<T>(weights[which], scales.get(which), {}), adapters[which]); }

  void check(RwkvWeights which, int64_t n, int64_t k) const {
    const Matrix<T> w = weight_of(which);
    TORCH_CHECK(w.n == n && w.k == k, "rwkv: weight ", which, " is [", w.n, ", ", w.k, "], not [", n, ", ", k, "]");
  }

  std::vector<T> normalized(RwkvWeights weight, RwkvWeights bias, const std::vector<T>& x) const {
    std::vector<T> y(x.size());
    const Norm<T> norm{NormKind::layer, eps, data(weight), data(bias)};
    for (int64_t row = 0; row < rows; row++) norm(x.data() + row * hidden, y.data() + row * hidden, hidden);
    return y;
  }

  // y [size] = f(index, count), a pair of vectors at a time.
  template <typename F>
  static std::vector<T> map_pairs(int64_t size, F f) {
    std::vector<T> y(size);
    for_pairs(size, [&](int64_t i, int64_t count) { store(y.data() + i, f(i, count), count); });
    return y;
  }

  // Token shift: interpolate between each token and the previous one.
  std::vector<T> token_shift(RwkvWeights which, const std::vector<T>& x, const T* previous) const {
    std::vector<T> y(x.size());
    const Vec one(1.0f);
    for (int64_t row = 0; row < rows; row++) {
      const int64_t start = row * hidden;
      for_pairs(hidden, [&](int64_t i, int64_t count) {
        const Pair m = load(data(which) + i, count), now = load(x.data() + start + i, count), past = load(previous + start + i, count);
        store(y.data() + start + i, {now.low * m.low + past.low * (one - m.low), now.high * m.high + past.high * (one - m.high)}, count);
      });
    }
    return y;
  }

  // sigmoid(receptance) * x
  static std::vector<T> gated(const std::vector<T>& receptance, const std::vector<T>& x) {
    return map_pairs(x.size(), [&](int64_t i, int64_t count) -> Pair {
      const Pair r = load(receptance.data() + i, count), value = load(x.data() + i, count);
      return {sigmoid(r.low) * value.low, sigmoid(r.high) * value.high};
    });
  }

  static std::vector<T> add(const std::vector<T>& x, const std::vector<T>& y) {
    return map_pairs(x.size(), [&](int64_t i, int64_t count) -> Pair {
      const Pair a = load(x.data() + i, count), b = load(y.data() + i, count);
      return {a.low + b.low, a.high + b.high};
    });
  }

  // The average of the past sums and the new token, for a vector of channels; a, b and p become the new sums.
  static Vec average(Vec k, Vec v, Vec decay_log, Vec first, Vec& a, Vec& b, Vec& p) {
    const Vec exponent = at::vec::maximum(p, k + first), past = (p - exponent).exp(), current = (k + first - exponent).exp();
    const Vec result = (a * past + v * current) / (b * past + current);
    const Vec decayed = p - decay_log.exp(), next = at::vec::maximum(decayed, k), old_scale = (decayed - next).exp(), new_scale = (k - next).exp();
    a = a * old_scale + v * new_scale, b = b * old_scale + new_scale, p = next;
    return result;
  }

  std::vector<T> time_mix(const std::vector<T>& x, const T* previous, const float* const (&sums)[3], float* const (&next)[3]) const {
    const std::vector<T> k = times(KEY, token_shift(MIX_K, x, previous)), v = times(VALUE, token_shift(MIX_V, x, previous));
    const std::vector<T> r = times(RECEPTANCE, token_shift(MIX_R, x, previous));
    const int64_t inner = k.size() / rows;
    std::vector<T> averages(k.size());
    for (int64_t row = 0; row < rows; row++) {
      for_pairs(inner, [&](int64_t channel, int64_t count) {
        const int64_t at = row * inner + channel;
        const Pair key = load(k.data() + at, count), value = load(v.data() + at, count);
        const Pair decay = load(data(DECAY) + channel, count), first = load(data(FIRST) + channel, count);
        Pair a = load(sums[0] + at, count), b = load(sums[1] + at, count), p = load(sums[2] + at, count), result;
        result.low = average(key.low, value.low, decay.low, first.low, a.low, b.low, p.low);
        result.high = average(key.high, value.high, decay.high, first.high, a.high, b.high, p.high);
        store(averages.data() + at, result, count), store(next[0] + at, a, count), store(next[1] + at, b, count), store(next[2] + at, p, count);
      });
    }
    return times(OUTPUT, gated(r, averages));
  }

  std::vector<T> channel_mix(const std::vector<T>& x, const T* previous) const {
    const std::vector<T> k = times(FEED_KEY, token_shift(FEED_MIX_K, x, previous));
    const std::vector<T> squared = map_pairs(k.size(), [&](int64_t i, int64_t count) -> Pair {
      const Pair part = load(k.data() + i, count);
      const Vec low = at::vec::maximum(part.low, Vec(0.0f)), high = at::vec::maximum(part.high, Vec(0.0f));
      return {low * low, high * high};
    });
    return gated(times(FEED_RECEPTANCE, token_shift(FEED_MIX_R, x, previous)), times(FEED_VALUE, squared));
  }
};

// x [R, hidden] and the rows' memory (inputs [R, hidden]; sums [R, inner], float32) -> the new x and memory. `adapters` and
// `adapter_sizes`: as for `Adapters`, of the weights.
std::vector<at::Tensor> rwkv(const at::Tensor& x, at::TensorList memory, at::TensorList weights, const Optionals& scales, double eps, const std::optional<at::Tensor>& adapters, const std::optional<at::Tensor>& adapter_sizes) {
  const int64_t rows = x.size(0), hidden = x.size(1);
  TORCH_CHECK(1 <= rows && rows <= MAX_ROWS && x.is_contiguous() && memory.size() == RWKV_MEMORY && weights.size() == RWKV_COUNT && scales.size() == RWKV_COUNT, "rwkv: x ", x.sizes());
  Pool::get().expect(true);
  const int64_t inner = weights[DECAY].numel();
  auto check_shape = [&](const at::Tensor& tensor, at::IntArrayRef shape) { TORCH_CHECK(tensor.is_contiguous() && tensor.sizes() == shape, "rwkv: ", tensor.sizes(), ", not ", shape); };
  for (const int which : {ATTENTION_INPUT, FEED_FORWARD_INPUT}) check_shape(memory[which], {rows, hidden});
  for (const int which : {VALUES, SUMS, EXPONENT}) check_shape(memory[which], {rows, inner});
  for (const int which : {NORM_A, NORM_A_BIAS, NORM_F, NORM_F_BIAS}) check_shape(weights[which], {hidden});
  for (const int which : {MIX_K, MIX_V, MIX_R, FEED_MIX_K, FEED_MIX_R}) check_shape(weights[which], {1, 1, hidden});
  for (const int which : {DECAY, FIRST}) check_shape(weights[which], {inner});

  std::vector<at::Tensor> out{at::empty(x.sizes(), x.options())};
  for (const at::Tensor& tensor : memory) out.push_back(at::empty(tensor.sizes(), tensor.options()));
  dispatch_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Adapters<T> all_adapters(adapters, adapter_sizes, RWKV_COUNT);
    const RwkvBlock<T> block{weights, scales, all_adapters, static_cast<float>(eps), rows, hidden};
    for (const RwkvWeights which : {KEY, VALUE, RECEPTANCE}) block.check(which, inner, hidden);
    const int64_t wide = block.weight_of(FEED_KEY).n;
    block.check(OUTPUT, hidden, inner), block.check(FEED_KEY, wide, hidden), block.check(FEED_RECEPTANCE, hidden, hidden), block.check(FEED_VALUE, hidden, wide);
    const T* input = x.const_data_ptr<T>();
    std::vector<T> stream(input, input + x.numel());
    const float* const sums[3] = {memory[VALUES].const_data_ptr<float>(), memory[SUMS].const_data_ptr<float>(), memory[EXPONENT].const_data_ptr<float>()};
    float* const next[3] = {out[1 + VALUES].mutable_data_ptr<float>(), out[1 + SUMS].mutable_data_ptr<float>(), out[1 + EXPONENT].mutable_data_ptr<float>()};
    const std::vector<T> attention_input = block.normalized(NORM_A, NORM_A_BIAS, stream);
    stream = block.add(stream, block.time_mix(attention_input, memory[ATTENTION_INPUT].const_data_ptr<T>(), sums, next));
    const std::vector<T> feed_forward_input = block.normalized(NORM_F, NORM_F_BIAS, stream);
    stream = block.add(stream, block.channel_mix(feed_forward_input, memory[FEED_FORWARD_INPUT].const_data_ptr<T>()));
    std::copy(stream.begin(), stream.end(), out[0].mutable_data_ptr<T>());
    std::copy(attention_input.begin(), attention_input.end(), out[1 + ATTENTION_INPUT].mutable_data_ptr<T>());
    std::copy(feed_forward_input.begin(), feed_forward_input.end(), out[1 + FEED_FORWARD_INPUT].mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace
