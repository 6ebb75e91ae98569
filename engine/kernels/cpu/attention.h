// Decoding's attention: one new token a row, which sees its own row's keys.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;   // keys whose scores are in hand at once
constexpr int64_t PIECE = 512;  // keys of one head that are one thread's work; sums do not depend on the threads
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Heads {
  int64_t groups, queries, size;  // of keys and values; heads of q that share one; numbers of a head
  float scale, cap;               // scores s become cap tanh(s / cap); 0: they stay

  int64_t q_size() const { return groups * queries * size; }
  int64_t kv_size() const { return groups * size; }
};

// The angles of each row's token, cosines and sines [rows, half]: so many planes of a head turn.
struct Turns {
  const float *cos = nullptr, *sin = nullptr;
  int64_t half = 0;
};

// A row's segment of a cache, [layers, 2, groups, capacity, D], and which of its tokens the new one sees.
struct Place {
  at::Tensor cache;
  int64_t first, last;  // the last is the new token's own

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

// to = the products of a with four rows b, which lie `size` apart.
inline void four_dots(const float* a, const float* b, int64_t size, float* to) {
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
  four_sums(total, to);
}

// y += factor x
inline void add_scaled(float* y, const float* x, float factor, int64_t size) {
  const Vec factors(factor);
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) at::vec::fmadd(Vec::loadu(x + i), factors, Vec::loadu(y + i)).store(y + i);
  for (; i < size; i++) y[i] += x[i] * factor;
}

// y += factors [count] times rows x [count, size]: four vectors of y at a time stay in registers.
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

// `count` numbers in float32: where they are, or in `room`.
inline const float* widened(const float* x, int64_t, float*) {
  return x;
}

inline const float* widened(const BFloat16* x, int64_t count, float* room) {
  by_pairs(count, [&](int64_t place, int64_t some) { store(room + place, load(x + place, some), some); });
  return room;
}

// Turn a head by its token's angles, the first 2 `half` numbers of it; the two of a plane lie `half` apart.
template <typename T, typename To>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, int64_t size, To* y) {
  for (int64_t i = 0; i < half; i++) {
    const float first = x[i], second = x[half + i];
    y[i] = first * cos[i] - second * sin[i];
    y[half + i] = second * cos[i] + first * sin[i];
  }
  for (int64_t i = 2 * half; i < size; i++) y[i] = x[i];
}

// What some keys come to: the largest score, the sum of e^(score - largest), and the values weighted by these.
struct Part {
  float largest = -INFINITE, total = 0.0f;
};

// The queries of a group, q [queries, D], over keys and values [count, D], block by block as in FlashAttention (Dao et
// al. 2022) -> their parts, and out [queries, D].
template <typename T>
void attend_piece(const Heads& heads, const float* q, const T* keys, const T* values, int64_t count, Part* parts, float* out) {
  const int64_t size = heads.size, queries = heads.queries;
  std::vector<float> room(BLOCK * size), scores(queries * BLOCK);
  std::fill(out, out + queries * size, 0.0f);
  std::fill(parts, parts + queries, Part());
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t block = std::min(BLOCK, count - begin);
    const float* k = widened(keys + begin * size, block * size, room.data());
    for (int64_t g = 0; g < queries; g++) {
      float* s = scores.data() + g * BLOCK;
      int64_t t = 0;
      for (; t + 4 <= block; t += 4) four_dots(q + g * size, k + t * size, size, s + t);
      for (; t < block; t++) s[t] = dot(q + g * size, k + t * size, size);
      for (t = 0; t < block; t++) s[t] *= heads.scale;
    }
    const float* v = widened(values + begin * size, block * size, room.data());
    for (int64_t g = 0; g < queries; g++) {
      float* s = scores.data() + g * BLOCK;
      if (heads.cap != 0.0f)
        for (int64_t t = 0; t < block; t++) s[t] = heads.cap * std::tanh(s[t] / heads.cap);
      std::fill(s + block, s + BLOCK, -INFINITE);
      Vec highest(parts[g].largest), total(0.0f);
      for (int64_t t = 0; t < block; t += LANES) highest = at::vec::maximum(highest, Vec::loadu(s + t));
      const float most = largest(highest);
      for (int64_t t = 0; t < block; t += LANES) {
        const Vec weights = (Vec::loadu(s + t) - Vec(most)).exp();
        weights.store(s + t);
        total = total + weights;
      }
      const float kept = std::exp(parts[g].largest - most);
      parts[g] = {most, parts[g].total * kept + sum(total)};
      if (kept != 1.0f)
        for (int64_t d = 0; d < size; d++) out[g * size + d] *= kept;
      add_weighted(out + g * size, v, s, block, size);
    }
  }
}

// softmax(scale q kᵀ) v for each row's one new token. qkv [rows, q_size + 2 kv_size]; the key, turned, and the value go
// into the row's cache. Sums in float32, rounded once -> out [rows, q_size].
template <typename T>
void attend(const Heads& heads, const T* qkv, const Turns& turns, const std::vector<Place>& rows, int64_t layer, T* out) {
  const int64_t size = heads.size, queries = heads.queries, q_size = heads.q_size(), kv_size = heads.kv_size();
  struct Task {
    int64_t row, group, begin, end;
  };
  std::vector<Task> tasks;
  std::vector<float> turned(rows.size() * q_size);
  for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); row++) {
    const T *q = qkv + row * (q_size + 2 * kv_size), *k = q + q_size, *v = k + kv_size;
    const int64_t half = turns.half;
    const float *c = turns.cos + row * half, *s = turns.sin + row * half;
    const Place& place = rows[row];
    for (int64_t i = 0; i < q_size; i += size) rotate(q + i, c, s, half, size, turned.data() + row * q_size + i);
    for (int64_t group = 0; group < heads.groups; group++) {
      rotate(k + group * size, c, s, half, size, place.at<T>(layer, 0, group, place.last));
      std::copy(v + group * size, v + (group + 1) * size, place.at<T>(layer, 1, group, place.last));
      for (int64_t begin = place.first; begin <= place.last; begin += PIECE)
        tasks.push_back({row, group, begin, std::min(begin + PIECE, place.last + 1)});
    }
  }

  const int64_t count = tasks.size();
  std::vector<Part> parts(count * queries);
  std::vector<float> pieces(count * queries * size);
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Task& task = tasks[i];
      const Place& place = rows[task.row];
      attend_piece(heads, turned.data() + task.row * q_size + task.group * queries * size, place.at<T>(layer, 0, task.group, task.begin),
                   place.at<T>(layer, 1, task.group, task.begin), task.end - task.begin, parts.data() + i * queries, pieces.data() + i * queries * size);
    }
  });

  // The pieces of a head, weighted by their shares of the sum of exponentials.
  std::vector<float> whole(size);
  for (int64_t i = 0, next; i < count; i = next) {
    for (next = i + 1; next < count && tasks[next].row == tasks[i].row && tasks[next].group == tasks[i].group;) next++;
    for (int64_t g = 0; g < queries; g++) {
      float largest = -INFINITE, total = 0.0f;
      for (int64_t j = i; j < next; j++) {
        const float other = parts[j * queries + g].largest;
        if (other > largest || std::isnan(other)) largest = other;
      }
      std::fill(whole.begin(), whole.end(), 0.0f);
      for (int64_t j = i; j < next; j++) {
        const float share = std::exp(parts[j * queries + g].largest - largest);
        total += share * parts[j * queries + g].total;
        add_scaled(whole.data(), pieces.data() + (j * queries + g) * size, share, size);
      }
      T* to = out + tasks[i].row * q_size + (tasks[i].group * queries + g) * size;
      for (int64_t d = 0; d < size; d++) to[d] = whole[d] / total;
    }
  }
}

}  // namespace
