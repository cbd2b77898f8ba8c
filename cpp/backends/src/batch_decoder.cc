// SPDX-License-Identifier: Apache-2.0
#include "treespec/batch_decoder.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <utility>

#include "lock_step.h"
#include "merged_graph.h"
#include "models.h"
#include "treespec/error.h"

namespace treespec {

class BatchDecoder::Impl {
 public:
  Impl(std::shared_ptr<const ExportedModel> target, std::shared_ptr<const ExportedModel> drafter,
       const DecoderOptions& recipe, const BatchOptions& options)
      : target_graph_(target, options.size, options.target.features),
        causal_draft_(
            is_kind(drafter, ModelKind::kCausalLm)
                ? std::make_unique<exported::MergedCausalGraph>(drafter, options.size, false)
                : nullptr),
        block_draft_(is_kind(drafter, ModelKind::kDFlash)
                         ? std::make_unique<exported::MergedBlockGraph>(drafter, options.size)
                         : nullptr),
        step_(queues()) {
    for (int32_t place = 0; place < options.size; ++place) {
      Place one;
      one.target = exported::make_target(target_graph_.sequence(step_, place), options.target);
      one.draft = make_draft(place, target->manifest().vocab_size, options);
      one.decoder = place == 0
                        ? std::make_unique<SpeculativeDecoder>(*one.target, one.draft.get(), recipe)
                        : std::make_unique<SpeculativeDecoder>(*places_[0].decoder, *one.target,
                                                               one.draft.get());
      places_.push_back(std::move(one));
    }
  }

  GenerateResult generate(ArrayView<const int32_t> prompt, const GenerateOptions& options) {
    const Lease lease(*this, take());
    return places_[lease.place()].decoder->generate(prompt, options);
  }

  std::vector<GenerateResult> generate_all(const std::vector<std::vector<int32_t>>& prompts,
                                           const std::vector<GenerateOptions>& options) {
    std::vector<GenerateResult> results(prompts.size());
    std::vector<std::exception_ptr> errors(prompts.size());
    std::atomic<size_t> next{0};
    const auto work = [&](Lease lease, size_t first) {
      const SpeculativeDecoder& decoder = *places_[lease.place()].decoder;
      for (size_t i = first; i < prompts.size(); i = next++) {
        try {
          results[i] = decoder.generate(prompts[i], options[options.size() == 1 ? 0 : i]);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      }
    };
    {
      // Before the leases, which are given up first when a thread cannot be started: the threads
      // that have been would wait for them.
      std::vector<std::future<void>> threads;
      std::vector<Lease> leases = enter_together(prompts.size());
      next = leases.size();
      for (size_t i = leases.size(); i-- > 0; leases.pop_back()) {
        threads.push_back(std::async(std::launch::async, work, std::move(leases.back()), i));
      }
    }
    for (const std::exception_ptr& error : errors) {
      if (error != nullptr) std::rethrow_exception(error);
    }
    return results;
  }

 private:
  struct Place {
    std::unique_ptr<TargetModel> target;
    std::unique_ptr<DraftModel> draft;
    std::unique_ptr<SpeculativeDecoder> decoder;
    bool taken = false;
  };

  /// A place taken, and its thread's part in the lock-step.
  class Lease {
   public:
    Lease(Impl& batch, size_t place) : batch_(&batch), place_(place) {}
    Lease(Lease&& other) noexcept
        : batch_(std::exchange(other.batch_, nullptr)), place_(other.place_) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (batch_ != nullptr) batch_->give_back(place_);
    }
    size_t place() const { return place_; }

   private:
    Impl* batch_;
    size_t place_;
  };

  static bool is_kind(const std::shared_ptr<const ExportedModel>& drafter, ModelKind kind) {
    return drafter != nullptr && drafter->manifest().kind == kind;
  }

  std::vector<exported::RequestQueue*> queues() {
    std::vector<exported::RequestQueue*> all;
    if (causal_draft_ != nullptr) all.push_back(causal_draft_.get());
    if (block_draft_ != nullptr) all.push_back(block_draft_.get());
    all.push_back(&target_graph_);
    return all;
  }

  std::unique_ptr<DraftModel> make_draft(int32_t place, int32_t vocab_size,
                                         const BatchOptions& options) {
    if (causal_draft_ != nullptr) {
      return exported::make_causal_draft(causal_draft_->sequence(step_, place), vocab_size,
                                         options.draft);
    }
    if (block_draft_ != nullptr) {
      return exported::make_block_draft(block_draft_->sequence(step_, place), options.draft);
    }
    return options.make_draft ? options.make_draft() : nullptr;
  }

  /// The first free place: forwards run over all places between the first and the last of them.
  std::optional<size_t> take_free() {
    for (size_t place = 0; place < places_.size(); ++place) {
      if (places_[place].taken) continue;
      places_[place].taken = true;
      step_.enter();
      return place;
    }
    return std::nullopt;
  }

  size_t take() {
    std::unique_lock<std::mutex> held(mutex_);
    std::optional<size_t> place;
    freed_.wait(held, [&] { return (place = take_free()).has_value(); });
    return *place;
  }

  /// One place, for which it waits, and as many others as are free and useful.
  std::vector<Lease> enter_together(size_t count) {
    std::vector<Lease> leases;
    if (count == 0) return leases;
    leases.reserve(std::min(count, places_.size()));
    leases.emplace_back(*this, take());
    const std::lock_guard<std::mutex> held(mutex_);
    while (leases.size() < count) {
      const std::optional<size_t> place = take_free();
      if (!place) break;
      leases.emplace_back(*this, *place);
    }
    return leases;
  }

  void give_back(size_t place) {
    const auto number = static_cast<int64_t>(place);
    target_graph_.release(step_, number);
    if (causal_draft_ != nullptr) causal_draft_->release(step_, number);
    if (block_draft_ != nullptr) block_draft_->release(step_, number);
    step_.leave();
    const std::lock_guard<std::mutex> held(mutex_);
    places_[place].taken = false;
    freed_.notify_one();
  }

  exported::MergedCausalGraph target_graph_;
  std::unique_ptr<exported::MergedCausalGraph> causal_draft_;
  std::unique_ptr<exported::MergedBlockGraph> block_draft_;
  exported::LockStep step_;
  std::vector<Place> places_;
  std::mutex mutex_;  // of `taken`
  std::condition_variable freed_;
};

namespace {

const BatchOptions& checked(const ExportedModel* target, const ExportedModel* drafter,
                            const BatchOptions& options) {
  constexpr const char* kWho = "BatchDecoder";
  TREESPEC_CHECK(options.size >= 1, kWho, ": size must be at least 1, got ", options.size);
  exported::check_target(kWho, target, options.target);
  if (drafter == nullptr) return options;
  TREESPEC_CHECK(!options.make_draft, kWho,
                 ": make_draft must be empty beside an exported drafter");
  exported::check_draft(kWho, drafter, target->manifest(), options.draft);
  return options;
}

}  // namespace

BatchDecoder::BatchDecoder(std::shared_ptr<const ExportedModel> target,
                           std::shared_ptr<const ExportedModel> drafter,
                           const DecoderOptions& recipe, const BatchOptions& options)
    : impl_(std::make_unique<Impl>(target, drafter, recipe,
                                   checked(target.get(), drafter.get(), options))) {}

BatchDecoder::~BatchDecoder() = default;

GenerateResult BatchDecoder::generate(ArrayView<const int32_t> prompt,
                                      const GenerateOptions& options) {
  return impl_->generate(prompt, options);
}

std::vector<GenerateResult> BatchDecoder::generate_all(
    const std::vector<std::vector<int32_t>>& prompts, const std::vector<GenerateOptions>& options) {
  TREESPEC_CHECK(options.size() == 1 || options.size() == prompts.size(),
                 "BatchDecoder::generate_all: options must be one, or one for each of the ",
                 prompts.size(), " prompts, got ", options.size());
  return impl_->generate_all(prompts, options);
}

}  // namespace treespec
