#include <atomic>
#include <tuple>
#include <vector>

#include "segment/rows.h"

namespace gossamer {
namespace {

#include "segment/stable_order.h"

constexpr int64_t kPartKeys = 1 << 18;  // at least so many keys per part
constexpr int64_t kMaxParts = 16;

// Turns counts into offsets: all smaller keys stand before, and equal keys of the parts before.
void offsets_of_counts(std::vector<int64_t>& counts, int64_t num_parts, int64_t num_keys, int64_t* rowptr) {
  int64_t next = 0;
  for (int64_t key = 0; key < num_keys; ++key) {
    rowptr[key] = next;
    for (int64_t part = 0; part < num_parts; ++part) {
      int64_t& count = counts[part * num_keys + key];
      next += count;
      count = next - count;
    }
  }
  rowptr[num_keys] = next;
}

// The stable order is unique, so the number of parts (and of threads) cannot change it.
std::tuple<Tensor, Tensor> stable_order_cpu(const Tensor& keys, int64_t num_keys) {
  GOSSAMER_CHECK_TENSOR(keys, 1, "stable_order");
  GOSSAMER_CHECK(num_keys >= 0, "stable_order: num_keys must be at least 0, got ", num_keys);
  const int64_t size = keys.size(0);
  Tensor rowptr = allocate(keys, {num_keys + 1}, ScalarType::Long);
  Tensor order = allocate(keys, {size}, ScalarType::Long);
  const int64_t most = std::min<int64_t>(torch::stable::get_num_threads(), kMaxParts);
  const int64_t num_parts = std::clamp<int64_t>(size / std::max(kPartKeys, num_keys), 1, most);
  const auto part_begin = [&](int64_t part) { return part * size / num_parts; };
  dispatch_index(keys.scalar_type(), "stable_order", [&](auto index) {
    const auto* values = keys.const_data_ptr<decltype(index)>();
    std::vector<int64_t> counts(num_parts * num_keys, 0);
    std::atomic<bool> in_range = true;
    torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int64_t* own = counts.data() + part * num_keys;
        if (!count_keys(values, num_keys, part_begin(part), part_begin(part + 1), own)) in_range = false;
      }
    });
    GOSSAMER_CHECK(in_range, "stable_order: keys must be in [0, ", num_keys, ")");
    offsets_of_counts(counts, num_parts, num_keys, rowptr.mutable_data_ptr<int64_t>());
    int64_t* result = order.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        place_keys(values, part_begin(part), part_begin(part + 1), counts.data() + part * num_keys, result);
      }
    });
  });
  return {rowptr, order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("stable_order", TORCH_BOX(&stable_order_cpu)); }

}  // namespace gossamer
