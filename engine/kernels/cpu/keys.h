// The keys and values of a step's rows: one layer of the KV cache's segments; and writing the new ones.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

template <typename T>
struct Keys {
  struct Piece {  // the first `length` tokens of a segment: its keys [groups, capacity, D], and `values` numbers further on its values
    T* start;
    int64_t values, group, length;  // group: from one group to the next
  };
  struct Row {  // `count` new tokens, from index `query` of the step on; their keys are the last of the last piece
    std::vector<Piece> pieces;
    int64_t query = 0, count = 0, length = 0;

    int64_t start() const { return length - count; }
  };

  std::vector<Row> rows;
  int64_t size, groups;

  // segments: [layers, 2, groups, capacity, D] each. `counts`: the number of new tokens and of pieces of each row;
  // `lengths`: the segment and length of each piece, oldest first. `tokens`: new tokens of all rows.
  Keys(at::TensorList segments, at::IntArrayRef counts, at::IntArrayRef lengths, int64_t layer, int64_t tokens, int64_t groups, int64_t size) : size(size), groups(groups) {
    size_t next = 0;
    int64_t query = 0;
    for (size_t i = 0; i + 1 < counts.size(); i += 2) {
      Row row{{}, query, counts[i]};
      for (int64_t piece = 0; piece < counts[i + 1]; piece++, next += 2) {
        TORCH_CHECK(next + 1 < lengths.size() && static_cast<size_t>(lengths[next]) < segments.size(), "keys: pieces ", lengths);
        const at::Tensor& segment = segments[lengths[next]];
        TORCH_CHECK(segment.dim() == 5 && segment.is_contiguous() && segment.scalar_type() == c10::CppTypeToScalarType<T>::value, "keys: a segment of ", segment.sizes());
        TORCH_CHECK(segment.size(2) == groups && segment.size(4) == size && 0 <= layer && layer < segment.size(0), "keys: layer ", layer, " of a segment of ", segment.sizes());
        TORCH_CHECK(0 < lengths[next + 1] && lengths[next + 1] <= segment.size(3), "keys: pieces ", lengths);
        row.pieces.push_back({segment.mutable_data_ptr<T>() + layer * segment.stride(0), segment.stride(1), segment.stride(2), lengths[next + 1]});
        row.length += lengths[next + 1];
      }
      TORCH_CHECK(0 < row.count && !row.pieces.empty() && row.count <= row.length, "keys: ", row.count, " new tokens of ", row.length);
      query += row.count;
      rows.push_back(std::move(row));
    }
    TORCH_CHECK(query == tokens, "keys: ", tokens, " tokens, not ", query);
  }

  // Keys that both rows share from their beginning.
  int64_t shared(const Row& a, const Row& b) const {
    int64_t total = 0;
    for (size_t i = 0; i < std::min(a.pieces.size(), b.pieces.size()); i++) {
      const Piece &x = a.pieces[i], &y = b.pieces[i];
      if (x.start != y.start) break;
      total += std::min(x.length, y.length);
      if (x.length != y.length) break;
    }
    return std::min({total, a.start(), b.start()});
  }

  // Keys or values [count, D] of a group, copied to `buffer` if they are in several segments.
  const T* find(const Row& row, bool values, int64_t group, int64_t begin, int64_t count, T* buffer) const {
    int64_t position = 0, copied = 0;
    for (const Piece& piece : row.pieces) {
      const int64_t offset = std::max(begin - position, int64_t(0)), length = std::min(piece.length, begin + count - position) - offset;
      position += piece.length;
      if (length <= 0) continue;
      const T* const start = piece.start + values * piece.values + group * piece.group + offset * size;
      if (length == count) return start;
      std::copy(start, start + length * size, buffer + copied * size);
      copied += length;
    }
    return buffer;
  }

  // Check that the new tokens of each row are all in its last piece, as `of_new` requires.
  void check_new() const {
    for (const Row& row : rows) TORCH_CHECK(row.count <= row.pieces.back().length, "keys: ", row.count, " new tokens in a piece of ", row.pieces.back().length);
  }

  // The place of a row's new keys or values of a group.
  T* of_new(const Row& row, bool values, int64_t group) const {
    const Piece& piece = row.pieces.back();
    return piece.start + values * piece.values + group * piece.group + (piece.length - row.count) * size;
  }
};

// Rotate the first 2 `half` numbers of a head by its token's angles; the two coordinates of a plane are `half` apart.
template <typename T, typename To>
void rotate_head(const T* x, const float* cos, const float* sin, int64_t half, int64_t size, To* y) {
  for_pairs(half, [&](int64_t i, int64_t count) {
    const Pair first = load(x + i, count), second = load(x + half + i, count), c = load(cos + i, count), s = load(sin + i, count);
    store(y + i, {first.low * c.low - second.low * s.low, first.high * c.high - second.high * s.high}, count);
    store(y + half + i, {second.low * c.low + first.low * s.low, second.high * c.high + first.high * s.high}, count);
  });
  std::copy(x + 2 * half, x + size, y + 2 * half);
}

// Rotate the queries [N, H, D] -> [N, H, D], and write the rotated keys and the values, [N, groups, D] each, to the
// cache. cos and sin [N, 1, half]; none: nothing is rotated. Computed in float32, rounded once.
at::Tensor rotate_and_write(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin,
                            at::TensorList segments, at::IntArrayRef rows, at::IntArrayRef pieces, int64_t layer) {
  const int64_t tokens = q.size(0), half = cos ? cos->size(-1) : 0;
  TORCH_CHECK(cos.has_value() == sin.has_value() && (!cos || (cos->numel() == tokens * half && sin->sizes() == cos->sizes())), "rotate_and_write: angles");
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && k.sizes() == v.sizes() && k.size(0) == tokens && k.size(2) == q.size(2) && 2 * half <= q.size(2), "rotate_and_write: ", q.sizes(), k.sizes(), v.sizes());
  TORCH_CHECK(q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1 && k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "rotate_and_write: q, k, v");
  const at::Tensor c = cos ? cos->to(at::kFloat).contiguous() : q, s = sin ? sin->to(at::kFloat).contiguous() : q;
  at::Tensor out = at::empty(q.sizes(), q.options());
  dispatch_type(q, [&](auto zero) {
    using T = decltype(zero);
    const Keys<T> keys(segments, rows, pieces, layer, tokens, k.size(1), k.size(2));
    keys.check_new();
    const T *queries = q.const_data_ptr<T>(), *new_keys = k.const_data_ptr<T>(), *new_values = v.const_data_ptr<T>();
    T* const rotated = out.mutable_data_ptr<T>();
    const float *cosines = half ? c.const_data_ptr<float>() : nullptr, *sines = half ? s.const_data_ptr<float>() : nullptr;
    const int64_t heads = q.size(1), size = keys.size;
    parallel_rows(tokens, (heads + 2 * keys.groups) * size * sizeof(T), 1, [&](int64_t begin, int64_t end) {
      for (const auto& row : keys.rows)
        for (int64_t i = std::max(begin, row.query); i < std::min(end, row.query + row.count); i++) {
          const float *a = cosines + i * half, *b = sines + i * half;
          for (int64_t h = 0; h < heads; h++) rotate_head(queries + i * q.stride(0) + h * q.stride(1), a, b, half, size, rotated + (i * heads + h) * size);
          for (int64_t g = 0; g < keys.groups; g++) {
            const int64_t at = (i - row.query) * size;
            rotate_head(new_keys + i * k.stride(0) + g * k.stride(1), a, b, half, size, keys.of_new(row, false, g) + at);
            const T* const value = new_values + i * v.stride(0) + g * v.stride(1);
            std::copy(value, value + size, keys.of_new(row, true, g) + at);
          }
        }
    });
  });
  return out;
}

}  // namespace
