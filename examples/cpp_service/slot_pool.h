// SPDX-License-Identifier: Apache-2.0
// A fixed number of places to work, and a bounded line of requests that wait for one.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <variant>
#include <vector>

#include "model_pair.h"

namespace service {

/// Hands out slots, first come first served. Safe to use from several threads.
class SlotPool {
 public:
  SlotPool(std::vector<std::unique_ptr<Slot>> slots, size_t max_waiting);

  /// A slot while somebody has it; goes back when it is destroyed.
  class Lease {
   public:
    Lease(SlotPool& pool, Slot& slot) : pool_(&pool), slot_(&slot) {}
    Lease(Lease&& other) noexcept
        : pool_(other.pool_), slot_(std::exchange(other.slot_, nullptr)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (slot_ != nullptr) pool_->release(*slot_);
    }
    Slot& operator*() const { return *slot_; }

   private:
    SlotPool* pool_;
    Slot* slot_;
  };

  enum class Refusal { kFull, kGaveUp };
  /// Waits in line. `give_up` is asked several times a second. Refused at once when the line is
  /// full.
  std::variant<Lease, Refusal> acquire(const std::function<bool()>& give_up);

  size_t num_slots() const { return slots_.size(); }
  size_t num_running() const;
  size_t num_waiting() const;

 private:
  void release(Slot& slot);

  const std::vector<std::unique_ptr<Slot>> slots_;
  const size_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot*> free_;
  std::deque<const void*> line_;  // who waits, by the address of something of theirs
};

}  // namespace service
