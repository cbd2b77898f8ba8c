// SPDX-License-Identifier: Apache-2.0
// device::root_scalars gives the bits of the CPU's features: all types, vocabularies of different
// sizes, truncations, penalties, greedy rows and rows that are no laws.
#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "device/device_memory.h"
#include "device/logits.h"
#include "treespec/device/selector.h"
#include "treespec/error.h"
#include "treespec/sampling.h"
#include "treespec/selector.h"

namespace {

using namespace treespec;  // NOLINT
using test::DeviceArray;
using test::Logits;
using Random = std::mt19937;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kMaxHistory = 12, kBiases = 2;

int32_t pick(Random& random, int32_t size) {
  return static_cast<int32_t>(random() % static_cast<uint32_t>(size));
}

DType random_type(Random& random) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  return kTypes[pick(random, 3)];
}

int32_t random_size(Random& random) {
  switch (pick(random, 6)) {
    case 0:
      return 4094 + pick(random, 5);
    case 1:
      return 4096 * 2 + pick(random, 4096);
    case 2:
      return 1 + pick(random, 3);
    default:
      return 1 + pick(random, 700);
  }
}

device::Sampling random_sampling(Random& random, int32_t vocab_size) {
  device::Sampling out;
  out.temperature = random() % 8 == 0 ? 0.0 : 0.3 + 0.13 * pick(random, 10);
  if (random() % 3 == 0) out.top_k = 1 + pick(random, std::min(vocab_size + 2, 60));
  if (random() % 3 == 0) out.top_p = 0.05 + 0.06 * pick(random, 16);
  if (random() % 4 == 0) out.min_p = 0.004 * (1 + pick(random, 40));
  return out;
}

SamplingParams params_of(const device::Sampling& sampling) {
  SamplingParams out;
  out.temperature = sampling.temperature;
  out.top_k = sampling.top_k;
  out.top_p = sampling.top_p;
  out.min_p = sampling.min_p;
  return out;
}

/// A batch of roots, and what both sides make of it.
class Batch {
 public:
  Batch(Random& random, int32_t batch, int32_t vocab_size, int32_t draft_size)
      : batch_(batch),
        target_(random_type(random), batch, vocab_size, pick(random, 2) * 3),
        draft_(random_type(random), batch, draft_size, pick(random, 2)),
        root_(random() % 2 == 0 ? draft_.dtype : random_type(random), batch, draft_size, 0) {
    for (int32_t b = 0; b < batch; ++b) {
      sampling_.push_back(random_sampling(random, vocab_size));
      draft_sampling_.push_back(random_sampling(random, draft_size));
      tokens_before_.push_back(1 + pick(random, kMaxHistory));
      fill(random, b);
    }
    if (random() % 3 == 0) fill_changes(random);
    if (random() % 4 == 0) spoil(random);
  }

  void check() const {
    const Result found = on_device();
    for (int32_t b = 0; b < batch_; ++b) {
      const float* own = found.scalars.data() + int64_t{b} * 9;
      RootScalars expected;
      if (on_cpu(b, expected)) {
        CHECK_EQUAL(found.status[static_cast<size_t>(b)], device::kOk);
        CHECK(std::memcmp(own, expected.data(), sizeof expected) == 0);
      } else {
        CHECK(found.status[static_cast<size_t>(b)] != device::kOk);
        CHECK(std::all_of(own, own + 9, [](float x) { return std::isnan(x); }));
      }
    }
  }

 private:
  /// Rows that are near to each other in most places; ties, and impossible tokens.
  void fill(Random& random, int32_t b) {
    std::normal_distribution<float> law(0.0f, 1.0f + 0.5f * static_cast<float>(pick(random, 8)));
    const bool equal = random() % 6 == 0, coarse = random() % 3 == 0;
    const float noise = 0.1f * static_cast<float>(pick(random, 8));
    const auto next = [&] {
      const float x = law(random);
      return coarse ? std::floor(x) : x;
    };
    for (int64_t t = 0; t < std::max(target_.width, draft_.width); ++t) {
      const float x = random() % 50 == 0 && t > 0 ? -kInfinity : next();
      if (t < target_.width) target_.set(b, t, x);
      if (t >= draft_.width) continue;
      const bool own = !equal && (t == 0 || random() % 4 == 0);
      draft_.set(b, t, own ? x * (1.0f - noise) + noise * next() : x);
      root_.set(b, t, random() % 9 == 0 && t > 0 ? -kInfinity : next());
    }
    if (random() % 5 > 0 || target_.width <= 4096) return;
    for (int64_t t = 4096; t < target_.width; ++t) target_.set(b, t, -kInfinity);  // whole blocks
  }

  void fill_changes(Random& random) {
    const auto vocab_size = static_cast<int32_t>(target_.width);
    for (int32_t b = 0; b < batch_; ++b) {
      penalties_.push_back({0.7 + 0.2 * pick(random, 5), 0.2 * pick(random, 4), 0.1});
      for (int32_t i = 0; i < kMaxHistory; ++i) history_.push_back(pick(random, vocab_size + 2));
      prompt_length_.push_back(pick(random, tokens_before_[static_cast<size_t>(b)] + 1));
      for (int32_t i = 0; i < kBiases; ++i) {
        bias_token_.push_back(random() % 3 == 0 ? -1 : pick(random, vocab_size));
        bias_.push_back(0.5 * pick(random, 9) - 2.0);
      }
      for (int64_t w = 0; w < words(); ++w) allowed_.push_back(random() | random());
      allowed_[static_cast<size_t>(b * words())] |= 1;  // a token that is possible
    }
  }

  /// Makes the laws of a sequence, or its length, wrong.
  void spoil(Random& random) {
    const int32_t b = pick(random, batch_);
    Logits* rows[] = {&target_, &draft_, &root_};
    Logits& one = *rows[pick(random, 3)];
    const auto width = static_cast<int32_t>(std::min(one.width, target_.width));
    switch (pick(random, 4)) {
      case 0:
        return one.set(b, pick(random, width), std::numeric_limits<float>::quiet_NaN());
      case 1:
        return one.set(b, pick(random, width), kInfinity);
      case 2:
        for (int64_t t = 0; t < one.width; ++t) one.set(b, t, -kInfinity);
        return;
      default:
        tokens_before_[static_cast<size_t>(b)] = -pick(random, 2);
    }
  }

  int64_t words() const { return (target_.width + 31) / 32; }

  /// False: it throws.
  bool on_cpu(int32_t b, RootScalars& out) const {
    const auto i = static_cast<size_t>(b);
    SamplingParams params = params_of(sampling_[i]);
    const SamplingParams draft_params = params_of(draft_sampling_[i]);
    const int32_t length = tokens_before_[i];
    History history{{history_.data() + b * kMaxHistory, length}, 0};
    if (!penalties_.empty()) {
      params.repetition_penalty = penalties_[i].repetition;
      params.presence_penalty = penalties_[i].presence;
      params.frequency_penalty = penalties_[i].frequency;
      history.prompt_length = prompt_length_[i];
      for (size_t k = i * kBiases; k < (i + 1) * kBiases; ++k) {
        if (bias_token_[k] >= 0) params.logit_bias.emplace_back(bias_token_[k], bias_[k]);
      }
    }
    const uint32_t* allowed = allowed_.empty() ? nullptr : allowed_.data() + b * words();
    RowsView draft = draft_.rows(draft_.bytes.data(), batch_);
    RowsView root = root_.rows(root_.bytes.data(), batch_);
    draft.width = root.width = std::min(draft_.width, target_.width);
    TargetRow p, q, r;
    try {
      process_logits(target_.rows(target_.bytes.data(), batch_), b, params, history, {}, allowed,
                     {}, p);
      process_logits(draft, b, draft_params, {}, {}, nullptr, {}, q);
      process_logits(root, b, draft_params, {}, {}, nullptr, {}, r);
      out = root_scalars(law_features(p, q, r), length, params);
    } catch (const InvalidArgument&) {
      return false;
    }
    return true;
  }

  struct Result {
    std::vector<float> scalars;
    std::vector<uint32_t> status;
  };

  Result on_device() const {
    const DeviceArray<char> target(target_.bytes), draft(draft_.bytes), root(root_.bytes);
    const DeviceArray<device::Sampling> sampling(sampling_), draft_sampling(draft_sampling_);
    const DeviceArray<int32_t> tokens_before(tokens_before_);
    const DeviceArray<device::Penalties> penalties(penalties_);
    const DeviceArray<int32_t> history(history_), prompt_length(prompt_length_),
        bias_token(bias_token_);
    const DeviceArray<double> bias(bias_);
    const DeviceArray<uint32_t> allowed(allowed_);
    device::RootLaws laws;
    laws.target = target_.rows(target.data(), batch_);
    laws.draft = draft_.rows(draft.data(), batch_);
    laws.root = root_.rows(root.data(), batch_);
    laws.sampling = sampling.data();
    laws.draft_sampling = draft_sampling.data();
    laws.tokens_before = tokens_before.data();
    if (!penalties_.empty()) {
      laws.changes = {allowed.data(),      kBiases,        bias_token.data(), bias.data(),
                      penalties.data(),    history.data(), kMaxHistory,       tokens_before.data(),
                      prompt_length.data()};
    }
    const size_t bytes = device::root_scalars_workspace_bytes(laws);
    const DeviceArray<char> workspace(bytes);
    const DeviceArray<uint32_t> status(std::vector<uint32_t>(static_cast<size_t>(batch_)));
    const DeviceArray<float> scalars(static_cast<size_t>(batch_) * 9);
    device::root_scalars({}, laws, workspace.data(), bytes, scalars.data(), status.data());
    return {scalars.to_host(), status.to_host()};
  }

  int32_t batch_;
  Logits target_, draft_, root_;
  std::vector<device::Sampling> sampling_, draft_sampling_;
  std::vector<int32_t> tokens_before_;
  std::vector<device::Penalties> penalties_;
  std::vector<int32_t> history_, prompt_length_, bias_token_;
  std::vector<double> bias_;
  std::vector<uint32_t> allowed_;
};

void equals_the_cpu(Random& random, int32_t num_batches) {
  for (int32_t i = 0; i < num_batches; ++i) {
    const int32_t vocab_size = random_size(random);
    const int32_t draft_size =
        random() % 2 == 0 ? vocab_size : std::max(1, vocab_size + pick(random, 40) - 20);
    Batch(random, 1 + pick(random, 4), vocab_size, draft_size).check();
  }
}

void largest_vocabulary_equals_the_cpu(Random& random) { Batch(random, 1, 1 << 18, 5000).check(); }

void refuses_what_it_cannot_read() {
  const DeviceArray<float> floats(size_t{64});
  const DeviceArray<uint32_t> words(size_t{4});
  const DeviceArray<int32_t> ints(size_t{4});
  const DeviceArray<device::Sampling> sampling(size_t{1});
  const RowsView rows{floats.data(), DType::kFloat32, 1, 8, 8};
  const device::RootLaws good{rows, rows, rows, sampling.data(), sampling.data(), {}, ints.data()};
  CHECK_EQUAL(device::root_scalars_workspace_bytes(good), size_t{72});
  const auto refused = [&](auto change) {
    device::RootLaws laws = good;
    change(laws);
    CHECK_THROWS(InvalidArgument, device::root_scalars_workspace_bytes(laws));
  };
  refused([](device::RootLaws& laws) { laws.target.dtype = DType::kFloat64; });
  refused([](device::RootLaws& laws) { laws.root.dtype = DType::kFloat64; });
  refused([](device::RootLaws& laws) { laws.target.width = (1 << 18) + 1; });
  refused([](device::RootLaws& laws) { laws.draft.width = 0; });
  refused([](device::RootLaws& laws) { laws.draft.num_rows = 2; });
  refused([](device::RootLaws& laws) { laws.sampling = nullptr; });
  refused([](device::RootLaws& laws) { laws.tokens_before = nullptr; });
  CHECK_THROWS(InvalidArgument,
               device::root_scalars({}, good, floats.data(), 71, floats.data(), words.data()));
  CHECK_THROWS(InvalidArgument,
               device::root_scalars({}, good, floats.data(), 72, nullptr, words.data()));
}

}  // namespace

int main() {
  if (!test::has_device()) return test::kSkipped;
  Random random(11);
  for (int order = 0; order < test::num_orders(); ++order) {
    test::set_order(order);
    equals_the_cpu(random, test::num_cases(200));
  }
  largest_vocabulary_equals_the_cpu(random);
  refuses_what_it_cannot_read();
}
