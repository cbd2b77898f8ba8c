// SPDX-License-Identifier: Apache-2.0
// Tokens to text as they come: never half a character, never a part of a stop string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace service {

/// The rules of python/treespec/text.py, so that text is cut where Python cuts it. Decodes a short
/// window again, since tokenizers may join tokens (spaces, multi-byte characters) only in context:
/// for every token when there are stop strings, else when text is asked for.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
      : tokenizer_(tokenizer), stop_(std::move(stop)) {}

  /// Adds a token; true when a stop string is complete, which ends and cuts the text.
  bool push(int32_t token);
  size_t num_tokens() const { return ids_.size(); }
  /// New text that no stop string can take back.
  std::string take();
  /// The rest, half characters included.
  std::string finish();

 private:
  std::string decode(size_t begin, size_t end) const;
  bool read_on();
  bool cut(size_t searched);
  std::string hand_out(size_t end);

  const Tokenizer& tokenizer_;
  std::vector<std::string> stop_;
  std::vector<int32_t> ids_;
  size_t window_ = 0;  // first token decoded again
  size_t read_ = 0;    // tokens whose text is in text_
  std::string text_;
  size_t taken_ = 0;  // bytes handed out
};

}  // namespace service
