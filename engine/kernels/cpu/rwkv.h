// One new token of 1 to 8 rows through a block of an RWKV, as `Block` in engine/models/rwkv.py has it.
#pragma once

#include "linear.h"
#include "norms.h"

namespace {

inline Vec sigmoid(Vec x) {
  return Vec(1.0f) / (Vec(1.0f) + x.neg().exp());
}

// The weights of a block, in the order of `Block.weights`.
enum RwkvWeights {
  NORM_A, NORM_A_BIAS, DECAY, FIRST, MIX_K, MIX_V, MIX_R, KEY, VALUE, RECEPTANCE, OUTPUT,
  NORM_F, NORM_F_BIAS, FEED_MIX_K, FEED_MIX_R, FEED_KEY, FEED_RECEPTANCE, FEED_VALUE, RWKV_COUNT
};

// What a row remembers: the last token's two inputs, and the two sums with their largest exponent apart.
enum RwkvMemory { ATTENDED, FED, VALUES, SUMS, EXPONENT, RWKV_MEMORY };

template <typename T>
struct RwkvBlock {
  at::TensorList weights;
  const Optionals& scales;
  float eps;
  int64_t rows, hidden;

  const T* data(RwkvWeights which) const { return weights[which].const_data_ptr<T>(); }

  std::vector<T> times(RwkvWeights which, const std::vector<T>& x) const {
    const Matrix<T> by = held(which);
    return product(by, x.data(), rows, by.k);
  }

  Matrix<T> held(RwkvWeights which) const { return matrix<T>(weights[which], scales.get(which), {}); }

  void check(RwkvWeights which, int64_t n, int64_t k) const {
    const Matrix<T> one = held(which);
    TORCH_CHECK(one.n == n && one.k == k, "rwkv: weight ", which, " is [", one.n, ", ", one.k, "], not [", n, ", ", k, "]");
  }

  std::vector<T> normalized(RwkvWeights weight, RwkvWeights bias, const std::vector<T>& x) const {
    std::vector<T> y(x.size());
    const Norm<T> norm{NormKind::layer, eps, data(weight), data(bias)};
    for (int64_t row = 0; row < rows; row++) norm(x.data() + row * hidden, y.data() + row * hidden, hidden);
    return y;
  }

  // y = f by the vector.
  template <typename F>
  static std::vector<T> each(int64_t size, F f) {
    std::vector<T> y(size);
    by_pairs(size, [&](int64_t place, int64_t count) { store(y.data() + place, f(place, count), count); });
    return y;
  }

  // A token and the one before it, `share` of the first.
  std::vector<T> mixed(RwkvWeights which, const std::vector<T>& x, const T* before) const {
    std::vector<T> y(x.size());
    const Vec one(1.0f);
    for (int64_t row = 0; row < rows; row++) {
      const int64_t start = row * hidden;
      by_pairs(hidden, [&](int64_t place, int64_t count) {
        const Pair m = load(data(which) + place, count), now = load(x.data() + start + place, count), past = load(before + start + place, count);
        store(y.data() + start + place, {now.low * m.low + past.low * (one - m.low), now.high * m.high + past.high * (one - m.high)}, count);
      });
    }
    return y;
  }

  // sigmoid(receptance) * x
  static std::vector<T> gated(const std::vector<T>& receptance, const std::vector<T>& x) {
    return each(x.size(), [&](int64_t place, int64_t count) -> Pair {
      const Pair r = load(receptance.data() + place, count), by = load(x.data() + place, count);
      return {sigmoid(r.low) * by.low, sigmoid(r.high) * by.high};
    });
  }

  static std::vector<T> added(const std::vector<T>& x, const std::vector<T>& y) {
    return each(x.size(), [&](int64_t place, int64_t count) -> Pair {
      const Pair a = load(x.data() + place, count), b = load(y.data() + place, count);
      return {a.low + b.low, a.high + b.high};
    });
  }

  // Of `count` channels: the average that the sums and the token show, and the sums after it.
  static Vec average(Vec k, Vec v, Vec decay_log, Vec first, Vec& a, Vec& b, Vec& p) {
    const Vec shown = at::vec::maximum(p, k + first), ours = (p - shown).exp(), theirs = (k + first - shown).exp();
    const Vec result = (a * ours + v * theirs) / (b * ours + theirs);
    const Vec faded = p - decay_log.exp(), next = at::vec::maximum(faded, k), kept = (faded - next).exp(), new_share = (k - next).exp();
    a = a * kept + v * new_share, b = b * kept + new_share, p = next;
    return result;
  }

  std::vector<T> time_mix(const std::vector<T>& x, const T* before, const float* const (&sums)[3], float* const (&next)[3]) const {
    const std::vector<T> k = times(KEY, mixed(MIX_K, x, before)), v = times(VALUE, mixed(MIX_V, x, before));
    const std::vector<T> r = times(RECEPTANCE, mixed(MIX_R, x, before));
    const int64_t inner = k.size() / rows;
    std::vector<T> seen(k.size());
    for (int64_t row = 0; row < rows; row++) {
      by_pairs(inner, [&](int64_t place, int64_t count) {
        const int64_t at = row * inner + place;
        const Pair key = load(k.data() + at, count), value = load(v.data() + at, count);
        const Pair decay = load(data(DECAY) + place, count), first = load(data(FIRST) + place, count);
        Pair a = load(sums[0] + at, count), b = load(sums[1] + at, count), p = load(sums[2] + at, count), shown;
        shown.low = average(key.low, value.low, decay.low, first.low, a.low, b.low, p.low);
        shown.high = average(key.high, value.high, decay.high, first.high, a.high, b.high, p.high);
        store(seen.data() + at, shown, count), store(next[0] + at, a, count), store(next[1] + at, b, count), store(next[2] + at, p, count);
      });
    }
    return times(OUTPUT, gated(r, seen));
  }

  std::vector<T> channel_mix(const std::vector<T>& x, const T* before) const {
    const std::vector<T> k = times(FEED_KEY, mixed(FEED_MIX_K, x, before));
    const std::vector<T> squared = each(k.size(), [&](int64_t place, int64_t count) -> Pair {
      const Pair part = load(k.data() + place, count);
      const Vec low = at::vec::maximum(part.low, Vec(0.0f)), high = at::vec::maximum(part.high, Vec(0.0f));
      return {low * low, high * high};
    });
    return gated(times(FEED_RECEPTANCE, mixed(FEED_MIX_R, x, before)), times(FEED_VALUE, squared));
  }
};

// x [R, hidden] and what the rows remember (inputs [R, hidden]; sums [R, inner], float32) -> x, and the memory after it.
std::vector<at::Tensor> rwkv(const at::Tensor& x, at::TensorList memory, at::TensorList weights, const Optionals& scales, double eps) {
  const int64_t rows = x.size(0), hidden = x.size(1);
  TORCH_CHECK(1 <= rows && rows <= MOST_ROWS && x.is_contiguous() && memory.size() == RWKV_MEMORY && weights.size() == RWKV_COUNT && scales.size() == RWKV_COUNT, "rwkv: x ", x.sizes());
  const int64_t inner = weights[DECAY].numel();
  auto fits = [&](const at::Tensor& tensor, at::IntArrayRef shape) { TORCH_CHECK(tensor.is_contiguous() && tensor.sizes() == shape, "rwkv: ", tensor.sizes(), ", not ", shape); };
  for (const int which : {ATTENDED, FED}) fits(memory[which], {rows, hidden});
  for (const int which : {VALUES, SUMS, EXPONENT}) fits(memory[which], {rows, inner});
  for (const int which : {NORM_A, NORM_A_BIAS, NORM_F, NORM_F_BIAS}) fits(weights[which], {hidden});
  for (const int which : {MIX_K, MIX_V, MIX_R, FEED_MIX_K, FEED_MIX_R}) fits(weights[which], {1, 1, hidden});
  for (const int which : {DECAY, FIRST}) fits(weights[which], {inner});

  std::vector<at::Tensor> out{at::empty(x.sizes(), x.options())};
  for (const at::Tensor& one : memory) out.push_back(at::empty(one.sizes(), one.options()));
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const RwkvBlock<T> block{weights, scales, static_cast<float>(eps), rows, hidden};
    for (const RwkvWeights which : {KEY, VALUE, RECEPTANCE}) block.check(which, inner, hidden);
    const int64_t wide = block.held(FEED_KEY).n;
    block.check(OUTPUT, hidden, inner), block.check(FEED_KEY, wide, hidden), block.check(FEED_RECEPTANCE, hidden, hidden), block.check(FEED_VALUE, hidden, wide);
    const T* from = x.const_data_ptr<T>();
    std::vector<T> stream(from, from + x.numel());
    const float* const sums[3] = {memory[VALUES].const_data_ptr<float>(), memory[SUMS].const_data_ptr<float>(), memory[EXPONENT].const_data_ptr<float>()};
    float* const next[3] = {out[1 + VALUES].mutable_data_ptr<float>(), out[1 + SUMS].mutable_data_ptr<float>(), out[1 + EXPONENT].mutable_data_ptr<float>()};
    const std::vector<T> attended = block.normalized(NORM_A, NORM_A_BIAS, stream);
    stream = block.added(stream, block.time_mix(attended, memory[ATTENDED].const_data_ptr<T>(), sums, next));
    const std::vector<T> fed = block.normalized(NORM_F, NORM_F_BIAS, stream);
    stream = block.added(stream, block.channel_mix(fed, memory[FED].const_data_ptr<T>()));
    std::copy(stream.begin(), stream.end(), out[0].mutable_data_ptr<T>());
    std::copy(attended.begin(), attended.end(), out[1 + ATTENDED].mutable_data_ptr<T>());
    std::copy(fed.begin(), fed.end(), out[1 + FED].mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace
