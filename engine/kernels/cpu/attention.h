// Attention for decoding: one new token per row, over the keys of its row.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;   // keys whose scores are computed at once
constexpr int64_t PIECE = 512;  // keys of one head per task; fixed, so that sums do not depend on the number of threads
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Heads {
  int64_t groups, queries, size;  // key-value heads; query heads per group; head size
  float scale, cap;               // scores s become cap tanh(s / cap); 0: no cap

  int64_t q_size() const { return groups * queries * size; }
  int64_t kv_size() const { return groups * size; }
};

// Rotary tables: cosines and sines [rows, half] of each row's token; the first `half` planes of a head are rotated.
struct RotaryTable {
  const float *cos = nullptr, *sin = nullptr;
  int64_t half = 0;
};

// A row's segment of the KV cache, [layers, 2, groups, capacity, D], and the tokens visible to the new one.
struct CacheRow {
  at::Tensor cache;
  int64_t first, last;  // `last` is the new token itself

  template <typename T>
  T* at(int64_t layer, int64_t values, int64_t group, int64_t token) const {
    const int64_t offset = layer * cache.stride(0) + values * cache.stride(1) + group * cache.stride(2) + token * cache.stride(3);
    return cache.mutable_data_ptr<T>() + offset;
  }
};

inline float dot(const float* a, const float* b, int64_t size) {
  Vec total(0.0f);
  for (int64_t i = 0; i < size; i += LANES) {
    const int64_t count = std::min(LANES, size - i);
    total = at::vec::fmadd(Vec::loadu(a + i, count), Vec::loadu(b + i, count), total);
  }
  return sum(total);
}

// Dot products of a with four rows of b, `size` apart -> out [4].
inline void four_dots(const float* a, const float* b, int64_t size, float* out) {
  Vec total[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const Vec part = Vec::loadu(a + i);
    for (int row = 0; row < 4; row++) total[row] = at::vec::fmadd(part, Vec::loadu(b + row * size + i), total[row]);
  }
  if (i < size) {
    const Vec part = Vec::loadu(a + i, size - i);
    for (int row = 0; row < 4; row++) total[row] = at::vec::fmadd(part, Vec::loadu(b + row * size + i, size - i), total[row]);
  }
  four_sums(total, out);
}

// y += factor x
inline void add_scaled(float* y, const float* x, float factor, int64_t size) {
  const Vec factors(factor);
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) at::vec::fmadd(Vec::loadu(x + i), factors, Vec::loadu(y + i)).store(y + i);
  for (; i < size; i++) y[i] += x[i] * factor;
}

// y += factors [count] times rows x [count, size]; four vectors of y at a time stay in registers.
inline void add_weighted(float* y, const float* x, const float* factors, int64_t count, int64_t size) {
  int64_t d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) {
    Vec total[4];
    for (int i = 0; i < 4; i++) total[i] = Vec::loadu(y + d + i * LANES);
    for (int64_t row = 0; row < count; row++) {
      const Vec factor(factors[row]);
      for (int i = 0; i < 4; i++) total[i] = at::vec::fmadd(Vec::loadu(x + row * size + d + i * LANES), factor, total[i]);
    }
    for (int i = 0; i < 4; i++) total[i].store(y + d + i * LANES);
  }
  for (int64_t row = 0; d < size && row < count; row++) add_scaled(y + d, x + row * size + d, factors[row], size - d);
}

// `count` numbers as float32: x itself, or converted into `buffer`.
inline const float* to_float(const float* x, int64_t, float*) {
  return x;
}

inline const float* to_float(const BFloat16* x, int64_t count, float* buffer) {
  for_pairs(count, [&](int64_t i, int64_t n) { store(buffer + i, load(x + i, n), n); });
  return buffer;
}

// Rotate the first 2 `half` numbers of a head by its token's angles; the two coordinates of a plane are `half` apart.
template <typename T, typename To>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, int64_t size, To* y) {
  for (int64_t i = 0; i < half; i++) {
    const float first = x[i], second = x[half + i];
    y[i] = first * cos[i] - second * sin[i];
    y[half + i] = second * cos[i] + first * sin[i];
  }
  for (int64_t i = 2 * half; i < size; i++) y[i] = x[i];
}

// The softmax statistics of some keys: the largest score, and the sum of e^(score - largest).
struct SoftmaxPart {
  float largest = -INFINITE, total = 0.0f;
};

// The queries of a group, q [queries, D], over keys and values [count, D], block by block as in FlashAttention (Dao et
// al. 2022) -> softmax statistics, and unnormalized outputs out [queries, D].
template <typename T>
void attend_piece(const Heads& heads, const float* q, const T* keys, const T* values, int64_t count, SoftmaxPart* parts, float* out) {
  const int64_t size = heads.size, queries = heads.queries;
  std::vector<float> buffer(BLOCK * size), scores(queries * BLOCK);
  std::fill(out, out + queries * size, 0.0f);
  std::fill(parts, parts + queries, SoftmaxPart());
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t block = std::min(BLOCK, count - begin);
    const float* k = to_float(keys + begin * size, block * size, buffer.data());
    for (int64_t g = 0; g < queries; g++) {
      float* s = scores.data() + g * BLOCK;
      int64_t t = 0;
      for (; t + 4 <= block; t += 4) four_dots(q + g * size, k + t * size, size, s + t);
      for (; t < block; t++) s[t] = dot(q + g * size, k + t * size, size);
      for (t = 0; t < block; t++) s[t] *= heads.scale;
    }
    const float* v = to_float(values + begin * size, block * size, buffer.data());
    for (int64_t g = 0; g < queries; g++) {
      float* s = scores.data() + g * BLOCK;
      if (heads.cap != 0.0f)
        for (int64_t t = 0; t < block; t++) s[t] = heads.cap * std::tanh(s[t] / heads.cap);
      std::fill(s + block, s + BLOCK, -INFINITE);
      Vec maxima(parts[g].largest), total(0.0f);
      for (int64_t t = 0; t < block; t += LANES) maxima = at::vec::maximum(maxima, Vec::loadu(s + t));
      const float maximum = max(maxima);
      for (int64_t t = 0; t < block; t += LANES) {
        const Vec weights = (Vec::loadu(s + t) - Vec(maximum)).exp();
        weights.store(s + t);
        total = total + weights;
      }
      const float rescale = std::exp(parts[g].largest - maximum);
      parts[g] = {maximum, parts[g].total * rescale + sum(total)};
      if (rescale != 1.0f)
        for (int64_t d = 0; d < size; d++) out[g * size + d] *= rescale;
      add_weighted(out + g * size, v, s, block, size);
    }
  }
}

// softmax(scale q kᵀ) v for the new token of each row. qkv [rows, q_size + 2 kv_size]; the rotated key and the value are
// written to the row's cache. Sums are float32, rounded once -> out [rows, q_size].
template <typename T>
void attend(const Heads& heads, const T* qkv, const RotaryTable& rotary, const std::vector<CacheRow>& rows, int64_t layer, T* out) {
  const int64_t size = heads.size, queries = heads.queries, q_size = heads.q_size(), kv_size = heads.kv_size();
  struct Task {
    int64_t row, group, begin, end;
  };
  std::vector<Task> tasks;
  std::vector<float> rotated(rows.size() * q_size);
  for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); row++) {
    const T *q = qkv + row * (q_size + 2 * kv_size), *k = q + q_size, *v = k + kv_size;
    const int64_t half = rotary.half;
    const float *c = rotary.cos + row * half, *s = rotary.sin + row * half;
    const CacheRow& cached = rows[row];
    for (int64_t i = 0; i < q_size; i += size) rotate(q + i, c, s, half, size, rotated.data() + row * q_size + i);
    for (int64_t group = 0; group < heads.groups; group++) {
      rotate(k + group * size, c, s, half, size, cached.at<T>(layer, 0, group, cached.last));
      std::copy(v + group * size, v + (group + 1) * size, cached.at<T>(layer, 1, group, cached.last));
      for (int64_t begin = cached.first; begin <= cached.last; begin += PIECE)
        tasks.push_back({row, group, begin, std::min(begin + PIECE, cached.last + 1)});
    }
  }

  const int64_t count = tasks.size();
  std::vector<SoftmaxPart> parts(count * queries);
  std::vector<float> pieces(count * queries * size);
  parallel_tasks(count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Task& task = tasks[i];
      const CacheRow& cached = rows[task.row];
      attend_piece(heads, rotated.data() + task.row * q_size + task.group * queries * size, cached.at<T>(layer, 0, task.group, task.begin),
                   cached.at<T>(layer, 1, task.group, task.begin), task.end - task.begin, parts.data() + i * queries, pieces.data() + i * queries * size);
    }
  });

  // Merge the pieces of each head, weighted by their sums of exponentials.
  std::vector<float> merged(size);
  for (int64_t i = 0, next; i < count; i = next) {
    for (next = i + 1; next < count && tasks[next].row == tasks[i].row && tasks[next].group == tasks[i].group;) next++;
    for (int64_t g = 0; g < queries; g++) {
      float largest = -INFINITE, total = 0.0f;
      for (int64_t j = i; j < next; j++) {
        const float of_piece = parts[j * queries + g].largest;
        if (of_piece > largest || std::isnan(of_piece)) largest = of_piece;
      }
      std::fill(merged.begin(), merged.end(), 0.0f);
      for (int64_t j = i; j < next; j++) {
        const float weight = std::exp(parts[j * queries + g].largest - largest);
        total += weight * parts[j * queries + g].total;
        add_scaled(merged.data(), pieces.data() + (j * queries + g) * size, weight, size);
      }
      T* head = out + tasks[i].row * q_size + (tasks[i].group * queries + g) * size;
      for (int64_t d = 0; d < size; d++) head[d] = merged[d] / total;
    }
  }
}

}  // namespace
