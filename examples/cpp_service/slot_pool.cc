// SPDX-License-Identifier: Apache-2.0
#include "slot_pool.h"

#include <algorithm>
#include <chrono>

namespace service {

SlotPool::SlotPool(std::vector<std::unique_ptr<Slot>> slots, size_t max_waiting)
    : slots_(std::move(slots)), max_waiting_(max_waiting) {
  for (const auto& slot : slots_) free_.push_back(slot.get());
}

std::variant<SlotPool::Lease, SlotPool::Refusal> SlotPool::acquire(
    const std::function<bool()>& give_up) {
  constexpr std::chrono::milliseconds kBetweenLooks(50);
  std::unique_lock<std::mutex> lock(mutex_);
  if (line_.size() >= max_waiting_ && (free_.empty() || !line_.empty())) return Refusal::kFull;
  line_.push_back(&lock);
  const auto is_our_turn = [&] { return line_.front() == &lock && !free_.empty(); };
  while (!changed_.wait_for(lock, kBetweenLooks, is_our_turn)) {
    if (!give_up()) continue;
    line_.erase(std::find(line_.begin(), line_.end(), &lock));
    changed_.notify_all();  // the next in line may be the first now
    return Refusal::kGaveUp;
  }
  line_.pop_front();
  Slot& slot = *free_.back();
  free_.pop_back();
  changed_.notify_all();
  return Lease(*this, slot);
}

size_t SlotPool::num_running() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return slots_.size() - free_.size();
}

size_t SlotPool::num_waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return line_.size();
}

void SlotPool::release(Slot& slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(&slot);
  changed_.notify_all();
}

}  // namespace service
