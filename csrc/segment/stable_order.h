// A counting sort in two passes over parts of the keys that can run at once. counts [num_parts, num_keys].

// counts[part, k] = number of keys equal to k in the part; false where a key is not in [0, num_keys).
template <typename index_t>
bool count_keys(const index_t* keys, int64_t num_keys, int64_t begin, int64_t end, int64_t* counts) {
  for (int64_t i = begin; i < end; ++i) {
    if (keys[i] < 0 || keys[i] >= num_keys) return false;
    ++counts[keys[i]];
  }
  return true;
}

// offsets[k] is where the next key equal to k of this part goes, and moves on.
template <typename index_t>
void place_keys(const index_t* keys, int64_t begin, int64_t end, int64_t* offsets, int64_t* order) {
  for (int64_t i = begin; i < end; ++i) order[offsets[keys[i]]++] = i;
}
