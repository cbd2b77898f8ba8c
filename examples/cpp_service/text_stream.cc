// SPDX-License-Identifier: Apache-2.0
#include "text_stream.h"

#include <algorithm>
#include <string_view>

namespace service {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // what half a character looks like

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

/// What `now` adds to `before`, counted in characters: decoders may rewrite a character in context.
std::string_view added(std::string_view before, std::string_view now) {
  auto skip = std::count_if(before.begin(), before.end(), starts_character);
  size_t at = 0;
  for (; at < now.size(); ++at) {
    if (starts_character(now[at]) && skip-- == 0) break;
  }
  return now.substr(at);
}

/// Length of the longest end of `text` that is a proper start of `stop`.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t n = stop.size() - 1; n > 0; --n) {
    if (ends_with(text, stop.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

bool TextStream::push(int32_t token) {
  ids_.push_back(token);
  return !stop_.empty() && read_on();
}

std::string TextStream::take() {
  if (stop_.empty()) read_on();
  size_t held = 0;
  for (const std::string& stop : stop_) held = std::max(held, overlap(text_, stop));
  return hand_out(text_.size() - held);
}

std::string TextStream::finish() {
  if (read_ < ids_.size()) {
    text_ += added(decode(window_, read_), decode(window_, ids_.size()));
    window_ = read_ = ids_.size();
  }
  return hand_out(text_.size());
}

std::string TextStream::decode(size_t begin, size_t end) const {
  return begin == end ? std::string() : tokenizer_.decode(ids_.data() + begin, end - begin);
}

/// Adds the text of the tokens not read yet, unless it ends in half a character.
bool TextStream::read_on() {
  const std::string now = decode(window_, ids_.size());
  const std::string before = decode(window_, read_);
  const std::string_view fresh = added(before, now);
  if (fresh.empty() || ends_with(now, kReplacement)) return false;
  const size_t searched = text_.size();
  text_ += fresh;
  window_ = read_;
  read_ = ids_.size();
  return cut(searched);
}

/// Cuts at the first stop string that ends in the text after `searched`.
bool TextStream::cut(size_t searched) {
  size_t first = std::string::npos;
  for (const std::string& stop : stop_) {
    const size_t from = searched + 1 > stop.size() ? searched + 1 - stop.size() : 0;
    first = std::min(first, text_.find(stop, from));
  }
  if (first == std::string::npos) return false;
  text_.resize(first);
  return true;
}

std::string TextStream::hand_out(size_t end) {
  if (end <= taken_) return {};
  std::string piece = text_.substr(taken_, end - taken_);
  taken_ = end;
  return piece;
}

}  // namespace service
