// Attention of a few new tokens, each over the keys of its row, which may be shared with other rows.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "keys.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;   // keys whose scores are computed at once
constexpr int64_t PIECE = 512;  // keys of one group per task, a multiple of BLOCK; fixed, so that sums do not depend on the number of threads
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

// The softmax statistics of some keys: the largest score, and the sum of e^(score - largest).
struct SoftmaxPart {
  float largest = -INFINITE, total = 0.0f;
};

// Some keys and values [count, D] for the queries of a group, q [queries, D], as in FlashAttention (Dao et al. 2022):
// update the softmax statistics of each query and its unnormalized output, out [queries, D].
inline void attend_block(const Heads& heads, const float* q, const float* keys, const float* values, int64_t count, SoftmaxPart* parts, float* out) {
  const int64_t size = heads.size;
  for (int64_t g = 0; g < heads.queries; g++) {
    float s[BLOCK];
    int64_t t = 0;
    for (; t + 4 <= count; t += 4) four_dots(q + g * size, keys + t * size, size, s + t);
    for (; t < count; t++) s[t] = dot(q + g * size, keys + t * size, size);
    for (t = 0; t < count; t++) s[t] *= heads.scale;
    if (heads.cap != 0.0f)
      for (t = 0; t < count; t++) s[t] = heads.cap * std::tanh(s[t] / heads.cap);
    std::fill(s + count, s + BLOCK, -INFINITE);
    Vec maxima(parts[g].largest), total(0.0f);
    for (t = 0; t < count; t += LANES) maxima = at::vec::maximum(maxima, Vec::loadu(s + t));
    const float maximum = max(maxima);
    for (t = 0; t < count; t += LANES) {
      const Vec weights = (Vec::loadu(s + t) - Vec(maximum)).exp();
      weights.store(s + t);
      total = total + weights;
    }
    const float rescale = std::exp(parts[g].largest - maximum);
    parts[g] = {maximum, parts[g].total * rescale + sum(total)};
    if (rescale != 1.0f)
      for (int64_t d = 0; d < size; d++) out[g * size + d] *= rescale;
    add_weighted(out + g * size, values, s, count, size);
  }
}

// Neighbouring keys and values of a group as float32, kept until others are wanted: neighbouring rows often share them.
template <typename T>
class LoadedBlock {
 public:
  const float *k = nullptr, *v = nullptr;  // [count, D] each

  LoadedBlock(const Keys<T>& keys, int64_t group) : keys(keys), group(group), gathered(2 * BLOCK * keys.size), converted(2 * BLOCK * keys.size) {}

  // Load `count` keys of a row from its key `begin` on.
  void load(const typename Keys<T>::Row& row, int64_t begin, int64_t count) {
    const T* start = keys.find(row, false, group, begin, count, gathered.data());
    const void* source = start == gathered.data() ? static_cast<const void*>(&row) : start;
    if (source == loaded_from && begin == loaded_begin && count <= loaded) return;
    loaded_from = source, loaded_begin = begin, loaded = count;
    const int64_t half = BLOCK * keys.size;
    k = to_float(start, count * keys.size, converted.data());
    v = to_float(keys.find(row, true, group, begin, count, gathered.data() + half), count * keys.size, converted.data() + half);
  }

 private:
  const Keys<T>& keys;
  int64_t group;
  std::vector<T> gathered;  // if they are in several segments
  std::vector<float> converted;
  const void* loaded_from = nullptr;  // the first key, or the row if they are in several segments
  int64_t loaded_begin = 0, loaded = 0;
};

// softmax(scale q kᵀ) v for the new tokens of a step. qkv [tokens, q_size + 2 kv_size]; the rotated keys and the values are
// written to the cache. Sums are float32, rounded once -> out [tokens, q_size].
//
// The keys that a token sees are cut into pieces of PIECE and those into blocks, both counted from the first of them: a
// token's result does not depend on how the keys of its row are cut into segments, or on the other tokens.
template <typename T>
struct Attention {
  const Heads& heads;
  const RotaryTable& rotary;
  const Keys<T>& keys;
  int64_t window;  // in tokens; 0: none

  using Row = typename Keys<T>::Row;
  struct Token {
    const Row* row;
    int64_t first, last;  // keys that it sees; `last` is its own
  };
  // Up to NEIGHBOURS tokens over one piece of their keys. Those of forks of one row share most of its blocks.
  struct Task {
    int64_t first, last, group, piece;
  };
  static constexpr int64_t NEIGHBOURS = 8;

  std::vector<Token> tokens{};
  std::vector<float> q{};              // rotated, [tokens, groups, queries, D]
  std::vector<int64_t> first_piece{};  // of each token, among the pieces of all tokens
  std::vector<SoftmaxPart> parts{};    // [pieces, groups, queries]
  std::vector<float> outputs{};        // [pieces, groups, queries, D], unnormalized

  void run(const T* qkv, T* out) {
    keys.check_new();
    for (const Row& row : keys.rows)
      for (int64_t last = row.start(); last < row.length; last++) tokens.push_back({&row, window == 0 ? 0 : std::max<int64_t>(0, last - window + 1), last});
    const int64_t count = tokens.size(), work = 8 * heads.q_size() * static_cast<int64_t>(sizeof(float));
    q.resize(count * heads.q_size());
    parallel_rows(count, work, 1, [&](int64_t token, int64_t end) {
      for (; token < end; token++) prepare(token, qkv + token * (heads.q_size() + 2 * heads.kv_size()));
    });
    const std::vector<Task> tasks = plan();
    parts.resize(first_piece.back() * heads.groups * heads.queries);
    outputs.resize(parts.size() * heads.size);
    parallel_tasks(tasks.size(), [&](int64_t task, int64_t end) {
      for (; task < end; task++) attend_piece(tasks[task]);
    });
    parallel_rows(count, work, 1, [&](int64_t token, int64_t end) {
      for (; token < end; token++) merge(token, out + token * heads.q_size());
    });
  }

  // Rotate the queries and the key of a token; store the key and the value.
  void prepare(int64_t token, const T* qkv) {
    const int64_t size = heads.size, half = rotary.half, offset = (tokens[token].last - tokens[token].row->start()) * size;
    const T *k = qkv + heads.q_size(), *v = k + heads.kv_size();
    const float *cos = rotary.cos + token * half, *sin = rotary.sin + token * half;
    for (int64_t i = 0; i < heads.q_size(); i += size) rotate_head(qkv + i, cos, sin, half, size, q.data() + token * heads.q_size() + i);
    for (int64_t group = 0; group < heads.groups; group++) {
      rotate_head(k + group * size, cos, sin, half, size, keys.of_new(*tokens[token].row, false, group) + offset);
      std::copy_n(v + group * size, size, keys.of_new(*tokens[token].row, true, group) + offset);
    }
  }

  std::vector<Task> plan() {
    const int64_t count = tokens.size();
    std::vector<Task> tasks;
    first_piece.push_back(0);
    for (int64_t first = 0, last; first < count; first = last) {
      const T* segment = tokens[first].row->pieces[0].start;
      int64_t most = 0;
      for (last = first; last < std::min(count, first + NEIGHBOURS) && tokens[last].row->pieces[0].start == segment; last++) {
        const int64_t pieces = (tokens[last].last - tokens[last].first) / PIECE + 1;
        first_piece.push_back(first_piece.back() + pieces);
        most = std::max(most, pieces);
      }
      for (int64_t group = 0; group < heads.groups; group++)
        for (int64_t piece = 0; piece < most; piece++) tasks.push_back({first, last, group, piece});
    }
    return tasks;
  }

  void attend_piece(const Task& task) {
    LoadedBlock<T> block(keys, task.group);
    for (int64_t offset = task.piece * PIECE; offset < (task.piece + 1) * PIECE; offset += BLOCK)
      for (int64_t i = task.first; i < task.last; i++) {
        const Token& token = tokens[i];
        const int64_t begin = token.first + offset, count = std::min(BLOCK, token.last + 1 - begin);
        if (count <= 0) continue;
        block.load(*token.row, begin, std::min(BLOCK, token.row->length - begin));  // the row's next token sees them all
        const int64_t slot = ((first_piece[i] + task.piece) * heads.groups + task.group) * heads.queries;
        const float* queries = q.data() + i * heads.q_size() + task.group * heads.queries * heads.size;
        attend_block(heads, queries, block.k, block.v, count, parts.data() + slot, outputs.data() + slot * heads.size);
      }
  }

  // Merge the pieces of each head, weighted by their sums of exponentials.
  void merge(int64_t token, T* out) const {
    const int64_t size = heads.size, of_piece = heads.groups * heads.queries;
    std::vector<float> merged(size);
    for (int64_t head = 0; head < of_piece; head++) {
      float largest = -INFINITE, total = 0.0f;
      for (int64_t piece = first_piece[token]; piece < first_piece[token + 1]; piece++) {
        const float part = parts[piece * of_piece + head].largest;
        if (part > largest || std::isnan(part)) largest = part;
      }
      std::fill(merged.begin(), merged.end(), 0.0f);
      for (int64_t piece = first_piece[token]; piece < first_piece[token + 1]; piece++) {
        const int64_t slot = piece * of_piece + head;
        const float weight = std::exp(parts[slot].largest - largest);
        total += weight * parts[slot].total;
        add_scaled(merged.data(), outputs.data() + slot * size, weight, size);
      }
      for (int64_t d = 0; d < size; d++) out[head * size + d] = merged[d] / total;
    }
  }
};

}  // namespace
