// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: a pure function of (seed, sequence, step, node slot, purpose,
// draw).
#pragma once

#include <cstdint>

#include "treespec/hd.h"

namespace treespec {

/// What a draw decides. A counter is never shared by two purposes, so that verification coins are
/// independent of drafting noise.
enum class Purpose : uint32_t {
  kDraft = 0,     ///< children of a node; node slot = path slot
  kAccept = 1,    ///< accept tests; node slot = parent id, draw = index in its draws
  kSample = 2,    ///< residual and bonus tokens; node slot = node id, draw = 0
  kSelect = 3,    ///< tournaments; node slot = node id, draw = i
  kPosition = 4,  ///< target draws; step = the drawn token's own position, draw = token id
};

/// Names a round: everything random in it is a function of these three and the counters above.
struct RoundKey {
  uint64_t seed = 0;
  uint32_t sequence_id = 0;
  uint32_t position = 0;  ///< absolute position of the round's root
};

template <class Word>
struct PhiloxOutput {
  Word word[4];
};
using PhiloxWords = PhiloxOutput<uint32_t>;

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Word:
/// uint32_t, or uint64_t for words kept in 64 bits, which compilers vectorise twice as well.
template <class Word = uint32_t>
TREESPEC_HD PhiloxOutput<Word> philox(uint32_t first, uint32_t second, uint32_t third,
                                      uint32_t fourth, uint64_t seed) {
  Word c0 = first, c1 = second, c2 = third, c3 = fourth;
  auto k0 = static_cast<uint32_t>(seed);
  auto k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * static_cast<uint32_t>(c0);
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * static_cast<uint32_t>(c2);
    c0 = static_cast<Word>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<Word>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// 53 random bits of one counter, as an integer in [0, 2^53). 24 or 32 bits would bias rare tokens.
TREESPEC_HD uint64_t random53(const RoundKey& key, Purpose purpose, uint32_t node_slot,
                              uint32_t draw_index) {
  const PhiloxWords out = philox(draw_index | static_cast<uint32_t>(purpose) << 24, node_slot,
                                 key.position, key.sequence_id, key.seed);
  return (static_cast<uint64_t>(out.word[1]) << 32 | out.word[0]) >> 11;
}

constexpr double kTwoToMinus53 = 1.0 / 9007199254740992.0;

/// Uniform in [0, 1): accept tests use `u < probability`.
TREESPEC_HD double uniform(const RoundKey& key, Purpose purpose, uint32_t node_slot,
                           uint32_t draw_index) {
  return static_cast<double>(random53(key, purpose, node_slot, draw_index)) * kTwoToMinus53;
}

/// Path slot of a child: the noise of a node depends on its path alone, never on build order.
/// slot(root) = 0. The mixer is the 32-bit finaliser of MurmurHash3 (Appleby, public domain).
TREESPEC_HD uint32_t child_slot(uint32_t parent_slot, int32_t token) {
  uint32_t h = parent_slot * 0x9E3779B1u + static_cast<uint32_t>(token) + 0x7F4A7C15u;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  h ^= h >> 16;
  return h;
}

}  // namespace treespec
