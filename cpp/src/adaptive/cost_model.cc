// SPDX-License-Identifier: Apache-2.0
#include "treespec/cost_model.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "treespec/error.h"

namespace treespec {
namespace {

/// Two of the measured values around `wanted`, and the share of the second.
struct Between {
  int32_t low, high;
  double share;
};

Between around(const std::set<int32_t>& measured, double wanted) {
  const auto above = std::find_if(measured.begin(), measured.end(),
                                  [wanted](int32_t value) { return value >= wanted; });
  if (above == measured.begin()) return {*above, *above, 0.0};
  if (above == measured.end()) return {*measured.rbegin(), *measured.rbegin(), 0.0};
  const int32_t low = *std::prev(above), high = *above;
  return {low, high, (wanted - low) / (high - low)};
}

const CostCurve& curve_of(const CostModel& costs, int32_t context, int32_t batch) {
  for (const TargetCurve& target : costs.target) {
    if (target.context == context && target.batch == batch) return target.curve;
  }
  throw InvalidArgument(detail::message("CostModel: target must have context ", context,
                                        " for batch ", batch, ", as for the other batches"));
}

void check_seconds(const char* field, double seconds) {
  TREESPEC_CHECK(seconds >= 0.0 && std::isfinite(seconds), "CostModel: ", field,
                 " must be finite and at least 0, got ", seconds);
}

void check_curve(const char* field, const CostCurve& curve) {
  TREESPEC_CHECK(!curve.rows.empty() && curve.rows.size() == curve.seconds.size(),
                 "CostModel: ", field, " must have as many seconds as rows, and at least one, got ",
                 curve.seconds.size(), " and ", curve.rows.size());
  for (size_t i = 0; i < curve.rows.size(); ++i) {
    const int32_t least = i == 0 ? 1 : curve.rows[i - 1] + 1;
    TREESPEC_CHECK(curve.rows[i] >= least, "CostModel: rows of ", field,
                   " must rise from 1 on, got ", curve.rows[i]);
    TREESPEC_CHECK(curve.seconds[i] > 0.0 && std::isfinite(curve.seconds[i]),
                   "CostModel: seconds of ", field, " must be finite and above 0, got ",
                   curve.seconds[i]);
  }
}

}  // namespace

double CostCurve::at(double num_rows) const {
  const auto above = std::lower_bound(rows.begin(), rows.end(), num_rows);
  const auto place = static_cast<size_t>(above - rows.begin());
  return line_at(std::clamp<size_t>(place, 1, std::max<size_t>(rows.size() - 1, 1)), num_rows);
}

void CostCurve::add_to(std::vector<double>& out, double share) const {
  size_t high = 1;
  for (size_t r = 1; r <= out.size(); ++r) {
    while (high + 1 < rows.size() && static_cast<size_t>(rows[high]) < r) ++high;
    out[r - 1] += share * line_at(high, static_cast<double>(r));
  }
}

double CostCurve::line_at(size_t high, double num_rows) const {
  if (rows.size() == 1 || num_rows <= rows[0]) return padded(0);
  const double low_seconds = padded(high - 1);
  const double slope = (padded(high) - low_seconds) / (rows[high] - rows[high - 1]);
  return low_seconds + slope * (num_rows - rows[high - 1]);
}

double CostCurve::padded(size_t i) const {
  return *std::min_element(seconds.begin() + static_cast<std::ptrdiff_t>(i), seconds.end());
}

std::vector<double> CostModel::target_seconds(double context, int32_t batch,
                                              int32_t most_rows) const {
  std::set<int32_t> contexts, batches;
  for (const TargetCurve& one : target) {
    contexts.insert(one.context);
    batches.insert(one.batch);
  }
  const Between c = around(contexts, context), b = around(batches, batch);
  std::vector<double> seconds(static_cast<size_t>(most_rows), 0.0);
  const auto add = [&](int32_t measured_context, int32_t measured_batch, double share) {
    if (share > 0.0) curve_of(*this, measured_context, measured_batch).add_to(seconds, share);
  };
  add(c.low, b.low, (1.0 - c.share) * (1.0 - b.share));
  add(c.high, b.low, c.share * (1.0 - b.share));
  add(c.low, b.high, (1.0 - c.share) * b.share);
  add(c.high, b.high, c.share * b.share);
  return seconds;
}

double CostModel::draft_seconds(int32_t depth, double rows_per_call, double backlog) const {
  if (depth < 1 || draft_call.rows.empty()) return 0.0;
  const double first = draft_call.at(std::max(backlog, 1.0));
  return drafts_by_level ? first + (depth - 1) * draft_call.at(rows_per_call) : first;
}

int32_t CostModel::most_rows() const {
  int32_t most = 0;
  for (const TargetCurve& one : target) most = std::max(most, one.curve.rows.back() / one.batch);
  return most;
}

void check_costs(const CostModel& costs) {
  TREESPEC_CHECK(!costs.target.empty(), "CostModel: target must have at least one curve, got none");
  std::set<std::pair<int32_t, int32_t>> places;
  std::set<int32_t> contexts, batches;
  for (const TargetCurve& one : costs.target) {
    TREESPEC_CHECK(one.context >= 0 && one.batch >= 1,
                   "CostModel: context must be at least 0 and batch at least 1, got ", one.context,
                   " and ", one.batch);
    check_curve("target", one.curve);
    TREESPEC_CHECK(places.insert({one.context, one.batch}).second,
                   "CostModel: target must have one curve for context ", one.context, " and batch ",
                   one.batch, ", got two");
    contexts.insert(one.context);
    batches.insert(one.batch);
  }
  for (const int32_t batch : batches) {
    for (const int32_t context : contexts) curve_of(costs, context, batch);
  }
  if (!costs.draft_call.rows.empty()) check_curve("draft_call", costs.draft_call);
  check_seconds("drafted_round_seconds", costs.drafted_round_seconds);
  check_seconds("plain_round_seconds", costs.plain_round_seconds);
}

}  // namespace treespec
