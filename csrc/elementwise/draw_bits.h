// 16 random bits for every feature of a row: feature f has those of draw f / 4, the lowest for f % 4 == 0.

constexpr int64_t kBlockFeatures = 32;  // random bits are drawn for so many features at a time

// Bits of the features [f, f + kBlockFeatures); f is a multiple of 4.
inline void draw_bits(const Random& random, int64_t f, uint16_t* bits) {
  using Draws [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint64_t;
  constexpr int kDraws = GOSSAMER_VECTOR_BYTES / 8;
  Draws number;
  for (int lane = 0; lane < kDraws; ++lane) number[lane] = lane;
  number += static_cast<uint64_t>(f / 4);
  for (int i = 0; i < kBlockFeatures / 4; i += kDraws, number += kDraws) {
    const Draws draws = random.draw(number);
    std::memcpy(bits + 4 * i, &draws, sizeof(draws));
  }
}
