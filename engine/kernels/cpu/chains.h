// The keys and values of a row as a chain of segments of the KV cache, which rows with a common prefix share.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

// The first `length` tokens of a segment [layers, 2, groups, capacity, D].
struct Span {
  at::Tensor segment;
  int64_t length;

  template <typename T>
  T* at(int64_t layer, int64_t values, int64_t group, int64_t token) const {
    const int64_t offset = layer * segment.stride(0) + values * segment.stride(1) + group * segment.stride(2) + token * segment.stride(3);
    return segment.mutable_data_ptr<T>() + offset;
  }
};

// A row: its past, and then the new tokens, which are at the end of the last span.
struct Chain {
  std::vector<Span> spans;
  int64_t length;  // of all spans
};

// A new token, with the first and last token of its chain that it sees; `last` is the token itself.
struct NewToken {
  const Chain* chain;
  int64_t first, last;

  // Where its own key or value is stored.
  template <typename T>
  T* at(int64_t layer, int64_t values, int64_t group) const {
    const Span& target = chain->spans.back();
    return target.at<T>(layer, values, group, target.length - (chain->length - last));
  }
};

// `count` numbers as float32: x itself, or converted into `buffer`.
inline const float* to_float(const float* x, int64_t, float*) {
  return x;
}

inline const float* to_float(const BFloat16* x, int64_t count, float* buffer) {
  for_pairs(count, [&](int64_t i, int64_t n) { store(buffer + i, load(x + i, n), n); });
  return buffer;
}

// The keys and values of some neighbouring tokens as float32, kept until others are wanted: neighbouring rows often share
// them.
template <typename T>
struct LoadedBlock {
  int64_t layer, group, size;
  std::vector<float> key_buffer, value_buffer;
  const float *keys = nullptr, *values = nullptr;

  LoadedBlock(int64_t layer, int64_t group, int64_t size, int64_t most) : layer(layer), group(group), size(size), key_buffer(most * size), value_buffer(most * size) {}

  // Load tokens `begin` to `begin` + `count` of a chain.
  void load(const Chain& chain, int64_t begin, int64_t count) {
    int64_t start = begin;
    const Span* span = chain.spans.data();
    for (; start >= span->length; span++) start -= span->length;
    const bool one_span = start + count <= span->length;
    const void* source = one_span ? static_cast<const void*>(span->segment.unsafeGetTensorImpl()) : span;
    if (source == loaded_from && start == loaded_start && count <= loaded) return;
    loaded_from = source, loaded_start = start, loaded = count;
    if (one_span) {
      keys = to_float(span->template at<T>(layer, 0, group, start), count * size, key_buffer.data());
      values = to_float(span->template at<T>(layer, 1, group, start), count * size, value_buffer.data());
      return;
    }
    for (int64_t done = 0, part; done < count; done += part, start = 0, span++) {
      part = std::min(count - done, span->length - start);
      copy(span->template at<T>(layer, 0, group, start), part * size, key_buffer.data() + done * size);
      copy(span->template at<T>(layer, 1, group, start), part * size, value_buffer.data() + done * size);
    }
    keys = key_buffer.data(), values = value_buffer.data();
  }

 private:
  const void* loaded_from = nullptr;  // the segment, or the span with the first of several parts
  int64_t loaded_start = 0, loaded = 0;

  static void copy(const T* x, int64_t count, float* out) {
    const float* numbers = to_float(x, count, out);
    if (numbers != out) std::copy_n(numbers, count, out);
  }
};

}  // namespace
