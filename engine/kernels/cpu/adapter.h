// The branch of an adapter, y += B A x, with A and B of low rank, as engine/layers/lora.py packs them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "dense.h"
#include "panels.h"
#include "pool.h"
#include "vectors.h"

namespace {

// Some rows of a weight [n, k] have a pair of A and B: B [panels, rank, 32] for `height` rows from `first` on.
template <typename T>
struct AdapterPart {
  int64_t first, height, rank;
  const T* b;
};

// The adapter of a weight [n, k]. Its scale is in B.
template <typename T>
struct Adapter {
  const T* a = nullptr;  // A of all parts, below each other [rank, k]
  int64_t rank = 0, k = 0, n = 0;  // `rank`: the sum of the ranks; `n`: the end of the last part
  const AdapterPart<T>* parts = nullptr;
  int64_t count = 0;

  // numbers [rows] += B h with h [rank], for `rows` rows of the weight from `row` on. The order of the sums is fixed.
  void add_to(float* numbers, const float* h, int64_t row, int64_t rows) const {
    for (const AdapterPart<T>* part = parts; part < parts + count; h += part->rank, part++)
      for (int64_t at = std::max(row, part->first), end = std::min(row + rows, part->first + part->height); at < end;) {
        const int64_t of_panel = (at - part->first) % PANEL, here = std::min(PANEL - of_panel, end - at);
        const T* panel = part->b + (at - part->first - of_panel) * part->rank;
        if (here == PANEL) {
          add_panel(panel, h, part->rank, numbers + at - row);
        } else {
          float sums[PANEL] = {};
          add_panel(panel, h, part->rank, sums);
          for (int64_t j = 0; j < here; j++) numbers[at - row + j] += sums[of_panel + j];
        }
        at += here;
      }
  }

 private:
  // numbers [32] += a panel [rank, 32] of B times h [rank]. The next panel is prefetched.
  static void add_panel(const T* b, const float* h, int64_t rank, float* numbers) {
    constexpr int64_t PAIRS = PANEL / PAIR;
    Pair total[PAIRS];
    std::fill_n(total, PAIRS, Pair{Vec(0.0f), Vec(0.0f)});
    for (int64_t j = 0; j < rank; j++) {
      const Vec factor(h[j]);
      for (int64_t line = 0; line < PANEL * static_cast<int64_t>(sizeof(T)); line += 64) __builtin_prefetch(reinterpret_cast<const char*>(b + (rank + j) * PANEL) + line, 0, 3);
      for (int64_t i = 0; i < PAIRS; i++) {
        const Pair part = load_split(b + j * PANEL + i * PAIR);
        total[i] = {at::vec::fmadd(part.low, factor, total[i].low), at::vec::fmadd(part.high, factor, total[i].high)};
      }
    }
    for (int64_t i = 0; i < PAIRS; i++) {
      const Pair more = merge_split<T>(total[i]), sum = load(numbers + i * PAIR);
      store(numbers + i * PAIR, {sum.low + more.low, sum.high + more.high});
    }
  }
};

// The adapters of some of an operator's matrices. `data` has A and the B of all parts of each matrix, all end to end.
// `sizes` has a row for each part: index of the matrix, columns of the matrix, first row, height, rank.
template <typename T>
struct Adapters {
  std::vector<AdapterPart<T>> parts;
  std::vector<Adapter<T>> by_index;  // empty if there are none

  Adapters(const std::optional<at::Tensor>& data, const std::optional<at::Tensor>& sizes, int64_t matrices) {
    if (!data || !sizes) return;
    TORCH_CHECK(data->is_contiguous() && sizes->is_contiguous() && sizes->dim() == 2 && sizes->size(1) == 5, "adapters: sizes ", sizes->sizes());
    const int64_t *size = sizes->const_data_ptr<int64_t>(), *const end = size + sizes->numel();
    const T *next = data->const_data_ptr<T>(), *const last = next + data->numel();
    parts.reserve(sizes->size(0)), by_index.resize(matrices);
    while (size < end) {
      Adapter<T>& adapter = by_index.at(size[0]);
      TORCH_CHECK(adapter.a == nullptr, "adapters: matrix ", size[0], " twice");
      const int64_t* const of_matrix = size;
      adapter.a = next, adapter.k = size[1], adapter.parts = parts.data() + parts.size();
      for (; size < end && size[0] == of_matrix[0]; size += 5) {
        TORCH_CHECK(size[1] == adapter.k && size[2] >= adapter.n && size[3] > 0 && size[4] > 0, "adapters: rank ", size[4], " for ", size[3], " rows from row ", size[2]);
        adapter.rank += size[4], adapter.n = size[2] + size[3], adapter.count++;
      }
      next += adapter.rank * adapter.k;
      for (const int64_t* part = of_matrix; part < size; part += 5) {
        parts.push_back({part[2], part[3], part[4], next});
        next += round_up(part[3], PANEL) * part[4];
      }
      TORCH_CHECK(next <= last, "adapters: ", data->sizes(), " numbers");
    }
    TORCH_CHECK(next == last, "adapters: ", data->sizes(), " numbers");
  }

  const Adapter<T>* operator[](int64_t index) const { return by_index.empty() || by_index[index].a == nullptr ? nullptr : &by_index[index]; }
};

// B h for rows of x, with h = A x [rows, rank] in float32.
//
// A is small, so h takes no region of the threads: each thread that begins with a range of W first computes a part of h,
// while there is one left, and waits for the others when it needs h. That is some hundred nanoseconds later.
template <typename T>
struct Branch {
  const Adapter<T>& adapter;
  std::vector<float> hidden;

  Branch(const Adapter<T>& adapter, int64_t rows, const FloatRows& x)
      : adapter(adapter), hidden(rows * adapter.rank), product{adapter.a, nullptr, hidden.data(), rows, adapter.rank, adapter.k, x} {
    const int64_t bytes = std::min<int64_t>(adapter.rank * adapter.k * sizeof(T), AHEAD);
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(adapter.a) + line, 0, 3);
  }

  // Compute parts of h until none is left. To be called before `add_to`, by all threads.
  void compute_hidden() const {
    while (taken.load(std::memory_order_relaxed) < adapter.rank) {
      const int64_t first = taken.fetch_add(STREAMS, std::memory_order_relaxed), last = std::min(first + STREAMS, adapter.rank);
      if (first >= last) return;
      product.multiply_range(first, last);
      done.fetch_add(last - first, std::memory_order_release);
    }
  }

  // numbers [count] += B h of row `m` of x, for `count` rows of W from `row` on.
  void add_to(float* numbers, int64_t m, int64_t row, int64_t count) const {
    wait();
    adapter.add_to(numbers, hidden.data() + m * adapter.rank, row, count);
  }

 private:
  const Product<T, float> product;
  mutable std::atomic<int64_t> taken{0}, done{0};  // rows of A

  // Wait for the parts that other threads compute: as in pool.h, without using up the turn of one that is put aside.
  void wait() const {
    if (done.load(std::memory_order_acquire) >= adapter.rank) return;
    const Clock::time_point late = Clock::now() + LATE;
    while (done.load(std::memory_order_acquire) < adapter.rank) {
      pause();
      if (Clock::now() > late) std::this_thread::sleep_for(NAP);
    }
  }
};

}  // namespace
