// SPDX-License-Identifier: Apache-2.0
// What the C++ benchmarks share: timing, the JSON report, inputs, the sum loops that are floors.
// Cold cases walk through a pool of inputs larger than the last cache, so that every call reads
// memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "shared/simd.h"
#include "treespec/treespec.h"

namespace bench {

constexpr int32_t kVocab = 151936;
constexpr size_t kPoolBytes = size_t{192} << 20;
inline volatile double sink = 0.0;  // keeps results alive

// --- Timing --------------------------------------------------------------------------------------

/// Processor time of this thread: other work on the machine does not count.
inline double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

inline double seconds_of(const std::function<void()>& work, int calls) {
  const double start = now();
  for (int i = 0; i < calls; ++i) work();
  return (now() - start) / calls;
}

/// A case: what it is called, what is demanded of it.
struct Case {
  std::string name;
  std::string floor_name;
  int calls = 1;             // per sample
  double bar_ratio = 0.0;    // most floors it may take; 0: no bar
  double bar_seconds = 0.0;  // most time it may take; 0: no bar
  int64_t num_rows = 0;      // vocabulary rows that one call reads; 0: not counted
};

/// Times cases and prints them as a JSON list.
class Report {
 public:
  /// Reads the command line: repetitions, and a part of the names of the cases to run.
  Report(int argc, char** argv)
      : repetitions_(argc > 1 ? std::atoi(argv[1]) : 15), wanted_(argc > 2 ? argv[2] : "") {
    std::printf("[");
  }
  ~Report() { std::printf("\n]\n"); }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  /// Times `work` and `floor` in turn; seconds per call, one sample per repetition.
  void add(const Case& one, const std::function<void()>& work, const std::function<void()>& floor) {
    if (one.name.find(wanted_) == std::string::npos) return;
    std::vector<double> spent, least;
    seconds_of(work, one.calls), seconds_of(floor, one.calls);  // warm-up
    for (int r = 0; r < repetitions_; ++r) {
      spent.push_back(seconds_of(work, one.calls));
      least.push_back(seconds_of(floor, one.calls));
    }
    std::printf("%s\n  {\"name\": \"%s\", \"floor_name\": \"%s\"", first_ ? "" : ",",
                one.name.c_str(), one.floor_name.c_str());
    if (one.bar_ratio > 0.0) std::printf(", \"bar_ratio\": %g", one.bar_ratio);
    if (one.bar_seconds > 0.0) std::printf(", \"bar_seconds\": %g", one.bar_seconds);
    if (one.num_rows > 0) std::printf(", \"num_rows\": %lld", static_cast<long long>(one.num_rows));
    std::printf(",\n   \"seconds\": ");
    print(spent);
    std::printf(",\n   \"floor_seconds\": ");
    print(least);
    std::printf("}");
    first_ = false;
  }

 private:
  static void print(const std::vector<double>& samples) {
    for (size_t i = 0; i < samples.size(); ++i) {
      std::printf("%s%.4g", i == 0 ? "[" : ", ", samples[i]);
    }
    std::printf("]");
  }

  int repetitions_;
  std::string wanted_;
  bool first_ = true;
};

// --- Inputs --------------------------------------------------------------------------------------

/// A small generator; the numbers only have to look like a model's.
struct Random {
  uint64_t state = 1;
  double next() {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state >> 11) * 0x1p-53;
  }
  /// Roughly normal: four uniforms.
  float logit() { return static_cast<float>((next() + next() + next() + next() - 2.0) * 4.0); }
};

/// Rows of logits `[num_rows, kVocab]`, a few of them high, as a language model gives them.
inline std::vector<float> logit_rows(int64_t num_rows) {
  Random random{7};
  std::vector<float> rows(static_cast<size_t>(num_rows * kVocab));
  for (float& value : rows) value = random.logit();
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int k = 0; k < 8; ++k) {
      rows[static_cast<size_t>(r * kVocab) + static_cast<size_t>(random.next() * kVocab)] =
          24.0f - 1.5f * static_cast<float>(k);
    }
  }
  return rows;
}

inline void log_softmax(float* row, int64_t width) {
  const float top = *std::max_element(row, row + width);
  double mass = 0.0;
  for (int64_t t = 0; t < width; ++t) mass += std::exp(static_cast<double>(row[t] - top));
  for (int64_t t = 0; t < width; ++t) row[t] -= top + static_cast<float>(std::log(mass));
}

/// Copies of one block, handed out in turn; what is read of them is larger than any cache.
template <class T>
class Pool {
 public:
  /// `num_read`: elements of a block that a call reads; 0: all.
  explicit Pool(const std::vector<T>& block, size_t num_read = 0)
      : size_(block.size()),
        num_blocks_(
            std::max<size_t>(2, kPoolBytes / ((num_read > 0 ? num_read : size_) * sizeof(T)))),
        memory_(size_ * num_blocks_) {
    for (size_t i = 0; i < num_blocks_; ++i) {
      std::copy(block.begin(), block.end(), memory_.data() + i * size_);
    }
  }
  const T* next() { return memory_.data() + (turn_++ % num_blocks_) * size_; }
  int64_t size() const { return static_cast<int64_t>(size_); }

 private:
  size_t size_, num_blocks_, turn_ = 0;
  std::vector<T> memory_;
};

// --- Floors --------------------------------------------------------------------------------------

/// One read of `size` numbers with 64 running sums.
template <class T, class ToFloat>
TREESPEC_INLINE double sum_lanes(const T* values, int64_t size, ToFloat to_float) {
  float lane[64] = {};
  for (int64_t t = 0; t + 64 <= size; t += 64) {
    for (int i = 0; i < 64; ++i) lane[i] += to_float(values[t + i]);
  }
  return std::accumulate(lane, lane + 64, 0.0);
}

TREESPEC_SIMD inline double sum_loop(const float* values, int64_t size) {
  return sum_lanes(values, size, [](float x) { return x; });
}

}  // namespace bench
