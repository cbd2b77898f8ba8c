// SPDX-License-Identifier: Apache-2.0
#include "c_api/arguments.h"

namespace treespec::c {

int32_t size32(const char* who, const char* name, int64_t size, int64_t least) {
  TREESPEC_CHECK(size >= least && size <= INT32_MAX, who, ": ", name, " must be in [", least,
                 ", 2^31), got ", size);
  return static_cast<int32_t>(size);
}

void check_reserved(const char* who, const char* name, int32_t reserved) {
  TREESPEC_CHECK(reserved == 0, who, ": ", name, ".reserved must be 0, got ", reserved);
}

void check_row_stride(const char* who, const char* name, int64_t num_rows, int64_t width,
                      int64_t row_stride) {
  constexpr int64_t kMostElements = int64_t{1} << 56;  // more than any memory holds
  TREESPEC_CHECK(row_stride >= width && (num_rows == 0 || row_stride <= kMostElements / num_rows),
                 who, ": ", name, ".row_stride must be at least the width ", width,
                 " and fit memory, got ", row_stride);
}

DType dtype_of(const char* who, treespec_dtype dtype) {
  TREESPEC_CHECK(dtype >= TREESPEC_FLOAT32 && dtype <= TREESPEC_BFLOAT16, who,
                 ": dtype must be TREESPEC_FLOAT32 (0), TREESPEC_FLOAT64 (1), TREESPEC_FLOAT16 (2) "
                 "or TREESPEC_BFLOAT16 "
                 "(3), got ",
                 dtype);
  return static_cast<DType>(dtype);
}

Proposal proposal_of(const char* who, treespec_proposal proposal) {
  TREESPEC_CHECK(proposal >= TREESPEC_DETERMINISTIC && proposal <= TREESPEC_TOP_PLUS_ONE, who,
                 ": proposal must be TREESPEC_DETERMINISTIC (0), TREESPEC_IID (1), "
                 "TREESPEC_WITHOUT_REPLACEMENT (2) "
                 "or TREESPEC_TOP_PLUS_ONE (3), got ",
                 proposal);
  return static_cast<Proposal>(proposal);
}

RoundKey key_of(const treespec_key& key) { return {key.seed, key.sequence_id, key.position}; }
treespec_key c_key(const RoundKey& key) { return {key.seed, key.sequence_id, key.position}; }

RowsView rows_of(const char* who, const char* name, const treespec_rows* given) {
  const treespec_rows& rows = required(who, name, given);
  const std::string what = detail::message(who, ": ", name);
  const DType dtype = dtype_of(what.c_str(), rows.dtype);
  check_reserved(who, name, rows.reserved);
  TREESPEC_CHECK(rows.num_rows >= 0 && rows.width >= 0 && rows.width <= INT32_MAX, what,
                 " must be [num_rows >= 0, width in [0, 2^31)], got [", rows.num_rows, ", ",
                 rows.width, "]");
  check_row_stride(who, name, rows.num_rows, rows.width, rows.row_stride);
  TREESPEC_CHECK(rows.data != nullptr || rows.num_rows * rows.width == 0, what,
                 ".data must not be NULL");
  TREESPEC_CHECK(
      reinterpret_cast<uintptr_t>(rows.data) % static_cast<uint64_t>(size_of(dtype)) == 0, what,
      ".data must be aligned to its elements of ", size_of(dtype), " bytes");
  return {rows.data, dtype, rows.num_rows, rows.width, rows.row_stride};
}

RowsView optional_rows_of(const char* who, const char* name, const treespec_rows* rows) {
  if (rows == nullptr || rows->data == nullptr) return {};
  return rows_of(who, name, rows);
}

treespec_rows c_rows(const RowsView& rows) {
  return {rows.data,      static_cast<treespec_dtype>(rows.dtype), 0, rows.num_rows, rows.width,
          rows.row_stride};
}

}  // namespace treespec::c
