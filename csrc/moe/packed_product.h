// Rows of one expert times panels of a weight matrix, both packed: every product is one sum along the depth, whatever
// rows and columns stand beside it.

// For columns [begin, end), `group` at a time: pack(first column, num_columns, panels) writes kPanels panels of
// [num_steps, kOuterColumns] words in the steps of Order, and finish(row, num_rows, first column, num_columns,
// products) gets products[panel][row][column] of up to kOuterRows rows, row by row.
template <int kPanels, typename Order, typename scalar_t, typename acc_t, typename Row, typename Pack, typename Finish>
void multiply_packed(const Row& row, int64_t num_rows, int64_t depth, int64_t begin, int64_t end, int64_t group,
                     typename Word<scalar_t>::Type* scratch, const Pack& pack, const Finish& finish) {
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  const int64_t phase_stride = Order::phase_stride(depth), num_steps = Order::kPhases * phase_stride;
  auto* words = scratch + kPanels * num_steps * kColumns;
  alignas(64) acc_t products[kPanels][kOuterRows * kColumns];
  for (int64_t block = 0; block < num_rows; block += kPackedRows) {
    const int64_t block_end = std::min(block + kPackedRows, num_rows);
    for (int64_t i = block; i < block_end; i += kOuterRows) {
      pack_rows<scalar_t, Order>([&](int64_t r) { return row(i + r); }, std::min<int64_t>(kOuterRows, block_end - i),
                                 depth, words + (i - block) * num_steps);
    }
    for (int64_t first = begin; first < end; first += group) {
      const int64_t num_columns = std::min(group, end - first);
      pack(first, num_columns, scratch);
      for (int64_t i = block; i < block_end; i += kOuterRows) {
        const int64_t n = std::min<int64_t>(kOuterRows, block_end - i);
        for (int m = 0; m < kPanels; ++m) {
          with_rows(n, [&](auto rows) {
            outer_phases<decltype(rows)::value, Order::kPhases, scalar_t>(
                words + (i - block) * num_steps, scratch + m * num_steps * kColumns, Order::phase_steps(depth),
                phase_stride, products[m]);
          });
        }
        finish(i, n, first, num_columns, products);
      }
    }
  }
}
