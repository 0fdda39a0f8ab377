// Every operator of the library: the table of contents. Kernels register themselves under these schemas
// in csrc/<family>/<name>_cpu.cpp and csrc/<family>/<name>_cuda.cu.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gossamer, m) {
  m.def("instruction_set() -> str");

  // hashing: expert ids of tokens, and the stable order of routes by expert
  m.def("route_plan(Tensor expert_ids, int num_experts, int capacity) -> (Tensor, Tensor, Tensor)");
  m.def("hash_plan(Tensor table, Tensor token_ids, int num_experts) -> (Tensor, Tensor, Tensor, Tensor)");

  // moe: rows of tokens to the order of a route plan and back, and the experts between
  m.def("dispatch(Tensor x, Tensor order, Tensor inverse, int k) -> Tensor");
  m.def("combine(Tensor y, Tensor inverse, Tensor? gates, int k) -> Tensor");
  m.def("combine_backward(Tensor grad, Tensor y, Tensor inverse, Tensor? gates) -> (Tensor, Tensor)");
  m.def(
      "expert_mlp(Tensor x, Tensor order, Tensor offsets, Tensor? gates, Tensor w_in, Tensor w_out, int k, "
      "str activation, float limit, bool save_hidden) -> (Tensor, Tensor)");
  m.def(
      "expert_mlp_backward(Tensor grad, Tensor x, Tensor order, Tensor offsets, Tensor? gates, Tensor w_in, "
      "Tensor w_out, Tensor hidden, int k, str activation, float limit, bool weights) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("hash_gate(Tensor x, Tensor weight, Tensor table, Tensor token_ids, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "hash_gate_backward(Tensor grad, Tensor x, Tensor weight, Tensor expert_ids, Tensor logits, float scale) -> "
      "(Tensor, Tensor)");
  m.def(
      "top_k_gate(Tensor logits, Tensor? bias, int k, str score, bool normalize, float scale, int num_groups, "
      "int top_groups, int capacity, bool sums) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "top_k_gate_backward(Tensor grad, Tensor? grad_sums, Tensor logits, Tensor expert_ids, Tensor normalizers, "
      "str score, bool normalize, float scale) -> Tensor");

  // attention: one or a few query positions against a cache
  m.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? seq_lens, Tensor? block_table, float scale, int window, "
      "Tensor? sinks, float softcap, Tensor? alibi_slopes, Tensor? tree_mask, Tensor? k_scale, Tensor? v_scale) -> "
      "(Tensor, Tensor)");

  // segment: sums over the in-neighbours of a CSR graph
  m.def(
      "aggregate(Tensor x, Tensor rowptr, Tensor col, Tensor? weight, Tensor? edge_ids, Tensor? row_scale, "
      "Tensor? col_scale, bool self_loops, int row_offset, Tensor? residual, float alpha, Tensor? rowptr_t, "
      "Tensor? col_t, Tensor? edge_ids_t, Tensor? weight_t=None) -> Tensor");
  m.def(
      "sddmm(Tensor a, Tensor b, Tensor rowptr, Tensor col, Tensor? edge_ids, Tensor? row_scale, Tensor? col_scale, "
      "float factor, Tensor? rowptr_t=None, Tensor? col_t=None, Tensor? edge_ids_t=None) -> Tensor");
  m.def(
      "gated_sum(Tensor query, Tensor key, Tensor value, Tensor rowptr, Tensor col, float eps, Tensor? rowptr_t=None, "
      "Tensor? col_t=None) -> (Tensor, Tensor)");
  m.def(
      "gated_sum_backward(Tensor grad, Tensor out, Tensor norm, Tensor query, Tensor key, Tensor value, Tensor rowptr, "
      "Tensor col, Tensor rowptr_t, Tensor col_t) -> (Tensor, Tensor, Tensor)");
  m.def(
      "extremum(Tensor x, Tensor rowptr, Tensor col, Tensor? weight, bool minimum, Tensor? rowptr_t, Tensor? col_t, "
      "Tensor? edge_ids_t) -> (Tensor, Tensor)");
  m.def(
      "extremum_backward(Tensor grad, Tensor arg, Tensor rowptr, Tensor? weight, Tensor rowptr_t, Tensor col_t, "
      "Tensor edge_ids_t) -> Tensor");
  m.def("extremum_backward_weight(Tensor grad, Tensor arg, Tensor x, Tensor rowptr, Tensor col) -> Tensor");
  m.def("stable_order(Tensor keys, int num_keys) -> (Tensor, Tensor)");

  // elementwise: dropout and rounding keyed by (seed, step, row, feature)
  m.def("node_dropout(Tensor x, float p, int seed, int step, Tensor? node_ids, int first_row) -> Tensor");
  m.def("relu_dropout(Tensor x, float p, int seed, int step, Tensor? node_ids, int first_row) -> Tensor");
  m.def("relu_dropout_backward(Tensor grad, Tensor out, float p) -> Tensor");
  m.def("quantize_rows(Tensor x, int bits, int seed, int step) -> (Tensor codes, Tensor scale)");
  m.def("dequantize_rows(Tensor codes, Tensor scale, int num_features, int bits, ScalarType dtype) -> Tensor");

  // sampling: neighbourhoods of seeds
  m.def("alias_table(Tensor rowptr, Tensor weight) -> Tensor");
  m.def("cumulative_weights(Tensor rowptr, Tensor weight) -> Tensor");
  m.def(
      "neighbor_sample(Tensor[] rowptr, Tensor[] col, Tensor[] weight, Tensor[] alias, Tensor[] cumulative, "
      "Tensor[] time, int[] source_type, int[] target_type, int[] num_nodes, Tensor[] seeds, Tensor[] seed_time, "
      "float[] fanouts, int seed, bool replace, str temporal, int? window, bool disjoint, Tensor(a!) table, "
      "Tensor[] edge_ids) -> Tensor[]");
  m.def(
      "sample_bounds(Tensor rowptr, Tensor? time, Tensor targets, Tensor? tree, Tensor? seed_time, float fanout, "
      "bool replace, int window) -> Tensor");
  m.def(
      "sample_rows(Tensor rowptr, Tensor col, Tensor? weight, Tensor? alias, Tensor? cumulative, Tensor? time, "
      "Tensor? edge_ids, Tensor targets, Tensor? tree, Tensor? seed_time, Tensor offsets, int num_edges, "
      "float fanout, int seed, int stream, bool replace, str temporal, int window) -> (Tensor, Tensor)");
  m.def("compress_rows(Tensor rowptr, Tensor col) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "decompress_rows(Tensor codes, Tensor offsets, Tensor positions, Tensor bases, int num_edges) -> "
      "(Tensor, Tensor)");
  m.def(
      "neighbor_sample_compressed(Tensor codes, Tensor offsets, Tensor positions, Tensor bases, Tensor seeds, "
      "float[] fanouts, int seed, bool replace, Tensor(a!) table) -> Tensor[]");
  m.def(
      "ppr_neighbors(Tensor rowptr, Tensor col, Tensor seeds, int top_k, float alpha, float eps, bool is_symmetric, "
      "int[] num_nodes) -> (Tensor, Tensor)");
  m.def(
      "walk_neighbors(Tensor rowptr, Tensor col, Tensor seeds, int top_k, int num_walks, int num_steps, float alpha, "
      "int seed, int[] num_nodes) -> (Tensor, Tensor)");

  // rewiring: pairs of nodes by their distance
  m.def("diagonal_blocks(Tensor rowptr, Tensor col) -> Tensor");
  m.def("k_hop_count(Tensor rowptr, Tensor col, Tensor blocks, int max_hops, int max_kept) -> (Tensor, Tensor)");
  m.def("row_pointers(Tensor counts) -> Tensor");
  m.def("k_hop(Tensor rowptr, Tensor col, Tensor blocks, Tensor kept, Tensor shell_rowptr, int num_pairs) -> Tensor");
  m.def("balanced_forman_curvature(Tensor rowptr, Tensor col) -> Tensor");
  m.def(
      "sdrf(Tensor rowptr, Tensor col, Tensor curvature, int num_iterations, float tau, float? removal_bound, int "
      "seed) "
      "-> (Tensor, Tensor)");
  m.def("fosr(Tensor rowptr, Tensor col, int num_edges, int num_power_iterations, int seed) -> Tensor");
  m.def(
      "drew_gcn(Tensor x, Tensor[] rowptr, Tensor[] col, Tensor[] scale, int[] layer, int[] shell, int[] state, "
      "int num_layers, Tensor weight, Tensor gamma, Tensor beta, Tensor? hop_weight, Tensor? mean, Tensor? var, "
      "float eps, bool l2_norm, bool self_loops, bool keep_messages, Tensor[] rowptr_t, Tensor[] col_t) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "drew_gcn_backward(Tensor grad, Tensor out, Tensor states, Tensor messages, Tensor mean, Tensor var, "
      "Tensor length, Tensor[] rowptr, Tensor[] col, Tensor[] scale, int[] layer, int[] shell, int[] state, "
      "Tensor weight, Tensor gamma, Tensor beta, Tensor? hop_weight, float eps, bool training, bool self_loops, "
      "bool need_grad_x, Tensor[] rowptr_t, Tensor[] col_t) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

// The module itself is empty: importing it loads this library, which registers the operators with torch.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
