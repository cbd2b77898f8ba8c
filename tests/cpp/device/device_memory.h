// SPDX-License-Identifier: Apache-2.0
// Memory of the device under test: a GPU, or the emulation, where it is host memory with guards.
#pragma once

#include <cstddef>
#include <vector>

namespace treespec::test {

/// Whether there is a device; a test without one ends with kSkipped.
bool has_device();
constexpr int kSkipped = 77;

/// Orders in which threads may resume: several in the emulation, one on a GPU, which has its own.
int num_orders();
void set_order(int order);

/// How many of `most` random cases to run: all on a GPU, a third in the emulation, where a fiber is
/// resumed for every thread and barrier; all there, too, if TREESPEC_ALL_CASES is set.
int num_cases(int most);

void* device_allocate(size_t bytes);
/// The emulation ends the program if something wrote outside the allocation.
void device_free(void* memory);
void copy_to_device(void* to, const void* from, size_t bytes);
/// Waits for the default stream first.
void copy_to_host(void* to, const void* from, size_t bytes);

/// An array on the device. Its address is a multiple of 256, as cudaMalloc's.
template <class T>
class DeviceArray {
 public:
  /// `size` elements of rubbish, so that whoever forgets to write one is found.
  explicit DeviceArray(size_t size) : DeviceArray(rubbish(size)) {}
  explicit DeviceArray(const std::vector<T>& values)
      : size_(values.size()), data_(static_cast<T*>(device_allocate(values.size() * sizeof(T)))) {
    copy_to_device(data_, values.data(), size_ * sizeof(T));
  }
  ~DeviceArray() { device_free(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> to_host() const {
    std::vector<T> values(size_);
    copy_to_host(values.data(), data_, size_ * sizeof(T));
    return values;
  }

 private:
  static std::vector<T> rubbish(size_t size) {
    std::vector<T> values(size);
    auto* bytes = reinterpret_cast<unsigned char*>(values.data());
    for (size_t i = 0; i < size * sizeof(T); ++i) bytes[i] = 0xAB;
    return values;
  }

  size_t size_;
  T* data_;
};

}  // namespace treespec::test
