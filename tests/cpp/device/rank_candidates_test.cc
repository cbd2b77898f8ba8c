// SPDX-License-Identifier: Apache-2.0
// device::rank_candidates gives the bits of treespec::rank_candidates, whatever the dtype,
// alignment, length and ties, in every order of threads; rows it cannot rank are reported.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "treespec/candidates.h"
#include "treespec/device/candidates.h"
#include "treespec/device/trees.h"
#include "treespec/error.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  DType dtype;
  int32_t num_rows, vocab, stride, offset, width;
  double temperature;
  std::vector<float> logit;  // [num_rows, vocab]
};

/// Rounds to nearest; ties and subnormals do not matter here, both sides read the same bits.
uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isinf(x) || std::isnan(x)) return static_cast<uint16_t>(bits >> 16);
  return static_cast<uint16_t>((bits + 0x8000u) >> 16);
}
uint16_t to_float16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7E00;
  if (std::isinf(x) || std::fabs(x) > 65000.0f) return static_cast<uint16_t>(sign | 0x7C00);
  int exponent = 0;
  const float mantissa = std::frexp(std::fabs(x), &exponent);
  if (x == 0.0f || exponent < -13) return sign;
  const auto bits = static_cast<int>(mantissa * 2048.0f) - 1024;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | bits);
}

/// Rows as they lie in memory; stride and offset put rows anywhere but on 16 bytes.
class Memory {
 public:
  explicit Memory(const Case& c) : bytes_(stored(c)), device_(bytes_), case_(c) {}
  RowsView on_host() const { return view(bytes_.data()); }
  RowsView on_device() const { return view(device_.data()); }

 private:
  static std::vector<char> stored(const Case& c) {
    const auto item = static_cast<size_t>(size_of(c.dtype));
    std::vector<char> bytes(item * static_cast<size_t>(c.num_rows * c.stride + c.offset), '\x7f');
    for (int32_t r = 0; r < c.num_rows; ++r) {
      for (int32_t t = 0; t < c.vocab; ++t) {
        const float x = c.logit[static_cast<size_t>(r * c.vocab + t)];
        const uint16_t half = c.dtype == DType::kFloat16 ? to_float16(x) : to_bfloat16(x);
        char* at = bytes.data() + item * static_cast<size_t>(c.offset + r * c.stride + t);
        std::memcpy(at, item == 4 ? static_cast<const void*>(&x) : &half, item);
      }
    }
    return bytes;
  }
  RowsView view(const char* data) const {
    return {data + size_of(case_.dtype) * case_.offset, case_.dtype, case_.num_rows, case_.vocab,
            case_.stride};
  }

  std::vector<char> bytes_;
  DeviceArray<char> device_;
  Case case_;
};

struct Lists {
  std::vector<int32_t> token;
  std::vector<float> logprob;
  std::vector<uint32_t> status;
};

Lists on_device(const Case& c, const device::LogitRows& logits) {
  const auto entries = static_cast<size_t>(c.num_rows * c.width);
  const DeviceArray<int32_t> token(entries);
  const DeviceArray<float> logprob(entries);
  const DeviceArray<uint32_t> status(std::vector<uint32_t>(static_cast<size_t>(c.num_rows)));
  const DeviceArray<char> workspace(device::rank_candidates_workspace_bytes(c.num_rows, c.vocab));
  device::rank_candidates({}, logits, c.temperature, workspace.data(),
                          {c.width, token.data(), logprob.data()}, status.data());
  return {token.to_host(), logprob.to_host(), status.to_host()};
}

void check_case(const Case& c) {
  const Memory memory(c);
  const Lists got = on_device(c, {memory.on_device()});
  for (int32_t r = 0; r < c.num_rows; ++r) {
    RowsView row = memory.on_host();
    row.num_rows = 1;
    row.data = static_cast<const char*>(row.data) + r * c.stride * size_of(c.dtype);
    std::vector<int32_t> token(static_cast<size_t>(c.width), 0);
    std::vector<float> logprob(token.size(), -kInfinity);
    bool sound = true;
    try {
      rank_candidates(row, c.width, c.temperature, token.data(), logprob.data());
    } catch (const InvalidArgument&) {
      sound = false;
    }
    CHECK_EQUAL(got.status[r] == device::kOk, sound);
    CHECK(std::memcmp(&got.token[r * c.width], token.data(), 4 * token.size()) == 0);
    CHECK(std::memcmp(&got.logprob[r * c.width], logprob.data(), 4 * token.size()) == 0);
  }
}

/// Logits of one kind per row, so that a case mixes them.
void fill(std::mt19937& random, int32_t vocab, float* logit) {
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const uint32_t kind = random() % 10;
  const float level = normal(random);
  for (int32_t t = 0; t < vocab; ++t) {
    const float x = normal(random);
    switch (kind) {
      case 0:
        logit[t] = std::round(x);
        break;  // ties
      case 1:
        logit[t] = level;
        break;  // nothing but ties
      case 2:
        logit[t] = random() % 4 == 0 ? x : -kInfinity;
        break;  // impossible tokens
      case 3:
        logit[t] = 0.01f * static_cast<float>(t);
        break;  // best last
      case 4:
        logit[t] = 100.0f * x;
        break;  // near one-hot
      case 5:
        logit[t] = random() % 2 == 0 ? 0.0f : -0.0f;
        break;
      case 6:
        logit[t] = 1e-4f * x;
        break;  // ties after rounding
      case 7:
        logit[t] = t % 128 < 8 ? 5.0f + x : x - 5.0f;
        break;  // all in few groups
      default:
        logit[t] = x;
    }
  }
  if (random() % 24 == 0) logit[random() % static_cast<uint32_t>(vocab)] = NAN;
  if (random() % 24 == 0) logit[random() % static_cast<uint32_t>(vocab)] = kInfinity;
  if (random() % 24 == 0) std::fill_n(logit, vocab, -kInfinity);
}

Case random_case(std::mt19937& random) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  constexpr int32_t kSizes[] = {1, 7, 8, 33, 256, 300, 1000, 4095, 4096, 4097, 9000, 20011};
  constexpr double kTemperatures[] = {1.0, 0.6, 2.5, 1e-6};
  Case c;
  c.dtype = kTypes[random() % 3];
  c.num_rows = 1 + static_cast<int32_t>(random() % 3);
  c.vocab = kSizes[random() % 12];
  c.stride = c.vocab + static_cast<int32_t>(random() % 3);
  c.offset = static_cast<int32_t>(random() % 4 == 0 ? 1 + random() % 7 : 0);
  c.width = 1 + static_cast<int32_t>(random() % (random() % 4 == 0 ? 1024 : 80));
  c.temperature = kTemperatures[random() % 4];
  c.logit.resize(static_cast<size_t>(c.num_rows * c.vocab));
  for (int32_t r = 0; r < c.num_rows; ++r) fill(random, c.vocab, c.logit.data() + r * c.vocab);
  return c;
}

void equals_the_cpu_bit_for_bit() {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    test::set_order(i % test::num_orders());
    check_case(random_case(random));
  }
}

void ranks_long_rows_that_fill_the_buffer() {
  constexpr int32_t kVocab = 151936;
  for (const int kind : {0, 1, 2}) {
    Case c{DType::kBFloat16, 1, kVocab, kVocab, 0, 1000, 1.0, std::vector<float>(kVocab)};
    std::mt19937 random(3);
    for (int32_t t = 0; t < kVocab; ++t) {
      c.logit[t] = kind == 0   ? 0.0f
                   : kind == 1 ? 1e-4f * static_cast<float>(t)
                               : static_cast<float>(random() % 5);
    }
    check_case(c);
  }
}

void rows_that_are_not_there_are_not_read() {
  Case c{DType::kFloat32, 4, 50, 50, 0, 3, 1.0, std::vector<float>(200, NAN)};
  for (int32_t t = 0; t < 50; ++t) c.logit[t] = c.logit[100 + t] = static_cast<float>(t);
  const Memory memory(c);
  const DeviceArray<int32_t> num_rows(std::vector<int32_t>{1, 1});
  const Lists lists = on_device(c, {memory.on_device(), 2, num_rows.data()});
  CHECK_EQUAL(lists.status[0] | lists.status[1], 0u);
  CHECK_EQUAL(lists.token[0], 49);
  CHECK_EQUAL(lists.token[6], 49);
  for (const int i : {3, 4, 5, 9, 10, 11}) CHECK_EQUAL(lists.logprob[i], -kInfinity);
}

void wrong_arguments_are_refused() {
  const auto call = [](const RowsView& rows, int32_t width, double temperature) {
    device::rank_candidates({}, {rows}, temperature, nullptr, {width, nullptr, nullptr}, nullptr);
  };
  CHECK_THROWS(InvalidArgument, call({nullptr, DType::kFloat64, 1, 8, 8}, 1, 1.0));
  CHECK_THROWS(InvalidArgument, call({nullptr, DType::kFloat32, 1, 8, 8}, 0, 1.0));
  CHECK_THROWS(InvalidArgument, call({nullptr, DType::kFloat32, 1, 8, 8}, 1025, 1.0));
  CHECK_THROWS(InvalidArgument, call({nullptr, DType::kFloat32, 1, 8, 8}, 1, 0.0));
  CHECK_THROWS(InvalidArgument, call({nullptr, DType::kFloat32, 1, 1 << 19, 1 << 19}, 1, 1.0));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  equals_the_cpu_bit_for_bit();
  ranks_long_rows_that_fill_the_buffer();
  rows_that_are_not_there_are_not_read();
  wrong_arguments_are_refused();
  return 0;
}
