#include <cstring>
#include <limits>
#include <tuple>

#include "common/tensor.h"
#include "sampling/elias_fano.h"

namespace gossamer {
namespace {

using namespace sampling;

using Compressed = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The places of rows and groups: offsets, positions and bases of CompressedRows; false if a row's does not fit.
bool place_rows(const int64_t* rowptr, int64_t num_nodes, int64_t* offsets, uint32_t* positions, int64_t* bases) {
  int64_t offset = 0;
  for (int64_t i = 0; i <= num_nodes; ++i) {
    if (i % kBaseRows == 0) bases[i / kBaseRows] = rowptr[i];
    if (i % kGroupRows == 0) offsets[i / kGroupRows] = offset;
    const int64_t position = rowptr[i] - bases[i / kBaseRows];
    if (position < 0 || position > std::numeric_limits<uint32_t>::max()) return false;
    positions[i] = static_cast<uint32_t>(position);
    if (i < num_nodes) offset += code_bytes(num_nodes, rowptr[i + 1] - rowptr[i]);
  }
  offsets[num_nodes / kGroupRows + 1] = offset;
  return true;
}

template <typename index_t>
void encode_groups(const int64_t* rowptr, const index_t* col, const int64_t* offsets, int64_t num_nodes,
                   uint8_t* codes) {
  torch::stable::parallel_for(0, num_nodes / kGroupRows + 1, 512, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      uint8_t* code = codes + offsets[group];
      for (int64_t i = group * kGroupRows; i < std::min((group + 1) * kGroupRows, num_nodes); ++i) {
        const int64_t size = rowptr[i + 1] - rowptr[i];
        if (size > 0) encode_row(col + rowptr[i], size, num_nodes, code);
        code += code_bytes(num_nodes, size);
      }
    }
  });
}

template <typename index_t>
bool is_encodable(const int64_t* rowptr, const index_t* col, int64_t num_nodes) {
  for (int64_t i = 0; i < num_nodes; ++i) {
    for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
      if (col[e] < 0 || col[e] >= num_nodes || (e > rowptr[i] && col[e] < col[e - 1])) return false;
    }
  }
  return true;
}

Compressed compress_rows_cpu(const Tensor& rowptr, const Tensor& col) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "compress_rows");
  GOSSAMER_CHECK_TENSOR(col, 1, "compress_rows");
  const int64_t num_nodes = rowptr.numel() - 1;
  const int64_t* rows = rowptr.const_data_ptr<int64_t>();
  const bool narrow = col.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(num_nodes >= 0 && rows[0] == 0 && rows[num_nodes] == col.numel(),
                 "compress_rows: rowptr must run from 0 to num_edges");
  Tensor offsets = torch::stable::empty({num_nodes / kGroupRows + 2}, ScalarType::Long);
  Tensor positions = torch::stable::empty({num_nodes + 1}, ScalarType::Int);
  Tensor bases = torch::stable::empty({num_nodes / kBaseRows + 1}, ScalarType::Long);
  const bool fits =
      place_rows(rows, num_nodes, offsets.mutable_data_ptr<int64_t>(),
                 reinterpret_cast<uint32_t*>(positions.mutable_data_ptr<int32_t>()), bases.mutable_data_ptr<int64_t>());
  GOSSAMER_CHECK(fits, "compress_rows: rowptr must ascend by less than 2^32 edges in ", kBaseRows, " rows");
  const int64_t num_bytes = offsets.const_data_ptr<int64_t>()[num_nodes / kGroupRows + 1] + kCodePadding;
  Tensor codes = torch::stable::empty({num_bytes}, ScalarType::Byte);
  uint8_t* code = codes.mutable_data_ptr<uint8_t>();
  std::memset(code, 0, num_bytes);
  const auto encode = [&](const auto* columns) {
    GOSSAMER_CHECK(is_encodable(rows, columns, num_nodes),
                   "compress_rows: col must be in [0, num_nodes) and ascend within each row");
    encode_groups(rows, columns, offsets.const_data_ptr<int64_t>(), num_nodes, code);
  };
  if (narrow) {
    encode(col.const_data_ptr<int32_t>());
  } else {
    encode(col.const_data_ptr<int64_t>());
  }
  return {codes, offsets, positions, bases};
}

std::tuple<Tensor, Tensor> decompress_rows_cpu(const Tensor& codes, const Tensor& offsets, const Tensor& positions,
                                               const Tensor& bases, int64_t num_edges) {
  const int64_t num_nodes = positions.numel() - 1;
  const CompressedRows rows{codes.const_data_ptr<uint8_t>(), offsets.const_data_ptr<int64_t>(),
                            reinterpret_cast<const uint32_t*>(positions.const_data_ptr<int32_t>()),
                            bases.const_data_ptr<int64_t>(), num_nodes};
  GOSSAMER_CHECK(rows.begin(num_nodes) == num_edges, "decompress_rows: positions must end at num_edges");
  Tensor rowptr = torch::stable::empty({num_nodes + 1}, ScalarType::Long);
  Tensor col = torch::stable::empty({num_edges}, num_nodes <= INT32_MAX ? ScalarType::Int : ScalarType::Long);
  int64_t* begins = rowptr.mutable_data_ptr<int64_t>();
  begins[num_nodes] = num_edges;
  const auto decode = [&](auto* columns) {
    torch::stable::parallel_for(0, num_nodes, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Row row = rows.row(i);
        begins[i] = row.begin;
        if (row.size() > 0) decode_row(rows.code(i), row.size(), num_nodes, columns + row.begin);
      }
    });
  };
  if (num_nodes <= INT32_MAX) {
    decode(col.mutable_data_ptr<int32_t>());
  } else {
    decode(col.mutable_data_ptr<int64_t>());
  }
  return {rowptr, col};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("compress_rows", TORCH_BOX(&compress_rows_cpu));
  m.impl("decompress_rows", TORCH_BOX(&decompress_rows_cpu));
}

}  // namespace gossamer
