// out[p] = x[order[p] / k] for positions p in [begin, end): whole rows, whatever their type.
//   x [num_tokens, row_bytes], order [num_routes], out [num_routes, row_bytes]

// Stores past the caches, which else read every line of out before it is overwritten. Both 64-byte aligned.
inline void stream_row(char* out, const char* in, int64_t row_bytes) {
#if GOSSAMER_VECTOR_BYTES == 64
  for (int64_t b = 0; b < row_bytes; b += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + b), _mm512_loadu_si512(in + b));
  }
#elif GOSSAMER_VECTOR_BYTES == 32
  for (int64_t b = 0; b < row_bytes; b += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + b),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + b)));
  }
#else
  std::memcpy(out, in, row_bytes);
#endif
}

inline void dispatch(const char* x, const int32_t* order, char* out, int32_t k, int64_t row_bytes, bool stream,
                     int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const char* row = x + (order[p] / k) * row_bytes;
    const char* next = x + (order[std::min(p + 1, end - 1)] / k) * row_bytes;
    for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(next + b);
    if (stream) {
      stream_row(out + p * row_bytes, row, row_bytes);
    } else {
      std::memcpy(out + p * row_bytes, row, row_bytes);
    }
  }
}
