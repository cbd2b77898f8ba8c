// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, as Hugging Face does it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace service {

/// A tokenizer that `convert_tokenizer` has turned into two OpenVINO graphs, one for each
/// direction. Safe to use from several threads.
class Tokenizer {
 public:
  /// Throws std::runtime_error, with the command that makes them, when the graphs are missing.
  explicit Tokenizer(const std::string& folder);
  ~Tokenizer();

  /// Special tokens that a text begins with included. `text` is UTF-8.
  std::vector<int32_t> encode(const std::string& text) const;
  /// UTF-8; special tokens left out. What is no character becomes U+FFFD, as in Hugging Face: one
  /// for every longest start of a character.
  std::string decode(const int32_t* token_ids, size_t count) const;

 private:
  struct Graphs;
  std::unique_ptr<Graphs> graphs_;
};

}  // namespace service
