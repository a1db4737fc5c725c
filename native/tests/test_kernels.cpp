// Every vector level against the scalar kernels, on random shapes and values; meant to run under sanitizers. Buffers
// are exactly as long as the operators promise, so that a byte read beyond them is found.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../cache_format.h"
#include "../input_tile.h"
#include "difference.h"
#include "recurrence_rounds.h"

namespace edgeblt {
namespace {

std::mt19937 chance(1);

int64_t any(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(chance); }

// Memory of exactly this many elements, aligned like ours where asked.
template <typename T>
struct Block {
  explicit Block(int64_t count, bool aligned = false) : count(count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    data = static_cast<T*>(aligned ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : std::malloc(bytes + !bytes));
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { std::free(data); }
  void randomize() {
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(chance());
  }
  int64_t count;
  T* data;
};

struct Rounded {
  Rounded(const Kernels& table, const float* values, int64_t rows, int64_t columns, int64_t block_size)
      : stride((((columns + block_size - 1) / block_size) + 7) / 8 * 8 + kSlack),
        padded(padded_columns(columns, block_size)), codes(rows * padded, true), scales(rows * stride),
        sums(rows * stride), tiles(tiles_elements(rows, (columns + block_size - 1) / block_size, block_size), true) {
    std::fill_n(scales.data, scales.count, 0.0F);
    std::fill_n(sums.data, sums.count, 0);
    const int64_t blocks = (columns + block_size - 1) / block_size;
    inputs = {rows, padded, block_size, blocks, stride, codes.data, scales.data, sums.data, tiles.data,
              table.tile_width(rows, block_size)};
    for (int64_t m = 0; m < rows; ++m) {
      int8_t* row = codes.data + m * padded;
      table.quantize(values + m * columns, columns, block_size, row, scales.data + m * stride, sums.data + m * stride);
      add_to_tile(table, inputs, m, tiles.data);
    }
  }
  int64_t stride, padded;
  Block<int8_t> codes;
  Block<float> scales;
  Block<int32_t> sums, tiles;
  Inputs inputs;
};

uint16_t random_half() {
  const auto kind = any(0, 20);
  if (kind == 0) return 0;
  if (kind == 1) return static_cast<uint16_t>(any(1, 0x3ff));  // subnormal
  return static_cast<uint16_t>(any(0x1000, 0x3c00) | any(0, 1) << 15);
}

void fail(const char* what, const char* level, int64_t rows, int64_t columns, int64_t block, double error) {
  std::printf("%s at %s: %ld x %ld, blocks of %ld: error %g\n", what, level, rows, columns, block, error);
  std::exit(1);
}

// Whether the bits are the same, where a number is one: of NaN there are many.
bool same_numbers(const float* one, const float* other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(one + i, other + i, sizeof *one) && !(std::isnan(one[i]) && std::isnan(other[i]))) return false;
  }
  return true;
}

// What is to agree to rounding; sums of terms that cancel may be off by more than their own size says.
void agree(const char* what, const char* level, const Block<float>& expected, const Block<float>& actual, int64_t rows,
           int64_t columns, int64_t block_size) {
  double largest = 1e-30, error = 0;
  for (int64_t i = 0; i < expected.count; ++i) {
    if (std::isfinite(expected.data[i])) largest = std::max<double>(largest, std::fabs(expected.data[i]));
    error = std::max(error, difference(expected.data[i], actual.data[i]));
  }
  if (!(error <= 2e-5 * largest + 1e-30)) fail(what, level, rows, columns, block_size, error);
}

// Both tables on the same weights, in two parts, and the vector one row by row of inputs: the same bits.
template <typename Weights, typename Function>
void compare(
    const char* what, const char* level, const Kernels& table, Function function, const Weights& weights,
    const float* values, int64_t rows, bool exactly) {
  const Rounded plain(kScalarKernels, values, rows, weights.columns, weights.block_size);
  const Rounded fast(table, values, rows, weights.columns, weights.block_size);
  Block<float> expected(rows * weights.rows), actual(rows * weights.rows), single(weights.rows);
  (kScalarKernels.*function)(weights, plain.inputs, 0, weights.rows, expected.data);
  const int64_t middle = weights.rows / 2 / 16 * 16;
  (table.*function)(weights, fast.inputs, 0, middle, actual.data);
  (table.*function)(weights, fast.inputs, middle, weights.rows, actual.data);
  agree(what, level, expected, actual, weights.rows, weights.columns, weights.block_size);
  if (exactly && rows > table.tile_rows) {  // rows in two parts, too, as threads share them
    const int64_t row = any(1, (rows - 1) / table.tile_rows) * table.tile_rows;
    (table.*function)(weights, some_rows(fast.inputs, 0, row), 0, weights.rows, actual.data);
    const Inputs rest = some_rows(fast.inputs, row, rows - row);
    (table.*function)(weights, rest, 0, weights.rows, actual.data + row * weights.rows);
  }
  if (exactly && !same_numbers(expected.data, actual.data, expected.count)) {
    fail("other bits than scalar's", level, weights.rows, weights.columns, weights.block_size, 0);
  }
  for (int64_t m = 0; m < rows; ++m) {
    const Inputs one = some_rows(fast.inputs, m, 1);
    (table.*function)(weights, one, 0, weights.rows, single.data);
    if (!same_numbers(single.data, actual.data + m * weights.rows, weights.rows)) {
      fail("a row by itself", level, weights.rows, weights.columns, weights.block_size, 0);
    }
  }
}

// float64's products of the inputs as they were rounded: what dense products must be up to the rounding of sums.
void compare_exact(const char* level, const DenseWeights& weights, const Kernels& table, const float* values, int64_t rows) {
  const Rounded rounded(table, values, rows, weights.columns, weights.block_size);
  Block<float> actual(rows * weights.rows);
  table.dense(weights, rounded.inputs, 0, weights.rows, actual.data);
  const auto half = [](uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return bits >> 15 ? -magnitude : magnitude;
  };
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t row = 0; row < weights.rows; ++row) {
      double total = 0, size = 0;
      for (int64_t column = 0; column < weights.columns; ++column) {
        const int64_t block = column / weights.block_size, lane = row % 16, four = 32 / weights.bits;
        const int64_t place = (row / 16 * weights.blocks * weights.block_size + column / four * four) * 2 * weights.bits;
        const uint8_t byte = weights.codes[place + lane * 4 + column % 4];
        int code = weights.bits == 8 ? byte : byte >> (column % 8 / 4 * 4) & 15;
        const int64_t index = row / 16 * weights.blocks + block;
        if (!weights.zero_points) code -= 1 << (weights.bits - 1);
        else if (weights.bits == 8) code -= weights.zero_points[index * 16 + lane];
        else code -= weights.zero_points[index * 8 + lane % 8] >> (lane / 8 * 4) & 15;
        const int64_t scale = (row / 16 * weights.scales.per_row + block / weights.scales.blocks_per_scale) * 16 + lane;
        const double weight = code * (weights.scales.half ? half(static_cast<const uint16_t*>(weights.scales.values)[scale])
                                                          : static_cast<const float*>(weights.scales.values)[scale]);
        const double input = double(rounded.inputs.codes[m * rounded.inputs.columns + column]) *
                             rounded.inputs.scales[m * rounded.inputs.stride + block];
        total += weight * input;
        size += std::fabs(weight * input);
      }
      const double got = actual.data[m * weights.rows + row];
      if (std::isnan(total) && std::isnan(got)) continue;
      if (!(std::fabs(total - got) <= 1e-6 * size + 1e-30)) {
        fail("dense, exactly", level, weights.rows, weights.columns, weights.block_size, total - got);
      }
    }
  }
}

void dense_round(const char* level, const Kernels& table) {
  const int64_t rows = any(1, 70), columns = any(0, 1) ? any(1, 900) : any(1, 40), inputs = any(0, 2) ? any(1, 21) : any(1, 130);
  const int64_t block_size = 16 << any(0, 4), blocks = (columns + block_size - 1) / block_size;
  const int64_t groups = (rows + 15) / 16, bits = any(0, 1) ? 8 : 4;
  Block<float> values(inputs * columns);
  for (int64_t i = 0; i < values.count; ++i) {
    values.data[i] = std::normal_distribution<float>()(chance) * (any(0, 50) ? 1.0F : 1000.0F);
  }
  if (any(0, 3) == 0) std::fill_n(values.data, columns, 0.0F);
  if (any(0, 9) == 0) values.data[any(0, columns - 1)] = any(0, 1) ? INFINITY : NAN;
  const int64_t times = any(0, 2) ? 1 : any(1, blocks), per_row = (blocks + times - 1) / times;
  const bool half = any(0, 2) != 0;
  Block<uint16_t> halves(groups * per_row * 16);
  Block<float> floats(groups * per_row * 16);
  for (int64_t i = 0; i < halves.count; ++i) {
    halves.data[i] = random_half();
    floats.data[i] = std::normal_distribution<float>()(chance);
  }
  Block<uint8_t> codes(groups * blocks * block_size * bits * 2), points(groups * blocks * bits * 2);
  codes.randomize();
  points.randomize();
  if (any(0, 3) == 0) std::fill_n(codes.data, codes.count, static_cast<uint8_t>(any(0, 1) ? 0 : 255));
  const Scales scales{half ? static_cast<const void*>(halves.data) : floats.data, half, per_row, times};
  const DenseWeights dense{rows, columns, block_size, blocks, static_cast<int>(bits), codes.data,
                           any(0, 1) ? points.data : nullptr, scales};
  compare("dense", level, table, &Kernels::dense, dense, values.data, inputs, true);
  compare_exact(level, dense, table, values.data, std::min<int64_t>(inputs, 3));
}

void one_round(const char* level, const Kernels& table) {
  const int64_t rows = any(1, 40), columns = any(1, 700), inputs = any(1, 21);
  const int64_t block_size = 16 << any(0, 4), blocks = (columns + block_size - 1) / block_size;
  const int bits = any(0, 1) ? 8 : 4, group = any(0, 1) ? 8 : 4;
  Block<float> values(inputs * columns);
  for (int64_t i = 0; i < values.count; ++i) {
    values.data[i] = std::normal_distribution<float>()(chance) * (any(0, 50) ? 1.0F : 1000.0F);
  }
  if (any(0, 3) == 0) std::fill_n(values.data, columns, 0.0F);
  if (any(0, 9) == 0) values.data[any(0, columns - 1)] = any(0, 1) ? INFINITY : NAN;
  const int64_t times = any(0, 2) ? 1 : any(1, blocks);
  const int64_t per_row = (blocks + times - 1) / times;
  const bool half = any(0, 2) != 0;
  // So long as to end where the memory does, whatever the count.
  Block<uint16_t> halves((rows + 1) * per_row);
  Block<float> floats((rows + 1) * per_row);
  const auto all = [&](int64_t count) {
    return Scales{half ? static_cast<const void*>(halves.data + halves.count - count)
                       : static_cast<const void*>(floats.data + floats.count - count),
                  half, per_row, times};
  };
  for (int64_t i = 0; i < halves.count; ++i) {
    halves.data[i] = random_half();
    floats.data[i] = std::normal_distribution<float>()(chance);
  }
  const Scales scales = all(rows * per_row), pair_scales = all((rows + 1) / 2 * 2 * per_row);

  Block<uint8_t> tiles((rows + 1) / 2 * ((columns + kTile - 1) / kTile) * tile_bytes(group, bits));
  tiles.randomize();
  const SparseWeights sparse{rows, columns, block_size, blocks, bits, group, tiles.data, pair_scales};
  compare("sparse", level, table, &Kernels::sparse, sparse, values.data, inputs, false);

  Block<uint8_t> mask(rows * mask_bytes(columns));
  const int64_t density = any(0, 3);  // empty, a quarter, a half, full
  std::vector<int32_t> offsets(1, 0);
  for (int64_t row = 0; row < rows; ++row) {
    int32_t count = 0;
    uint8_t* bytes = mask.data + row * mask_bytes(columns);
    std::memset(bytes, 0, static_cast<size_t>(mask_bytes(columns)));
    for (int64_t column = 0; column < columns; ++column) {
      const bool set = density == 3 || (density && any(0, density == 1 ? 3 : 1) == 0);
      bytes[column / 8] = static_cast<uint8_t>(bytes[column / 8] | set << column % 8);
      count += set;
    }
    offsets.push_back(offsets.back() + (count * bits + 7) / 8);
  }
  Block<uint8_t> stored(offsets.back() + kMaskedPadding);
  stored.randomize();
  const MaskedWeights masked{rows, columns, block_size, blocks, bits, mask.data, stored.data, offsets.data(), scales};
  compare("masked", level, table, &Kernels::masked, masked, values.data, inputs, false);

  Block<float> expected(inputs), actual(inputs);
  for (int64_t i = 0; i < values.count; ++i) values.data[i] = std::normal_distribution<float>()(chance) * 5;
  kScalarKernels.entropies(values.data, inputs, columns, expected.data);
  table.entropies(values.data, inputs, columns, actual.data);
  for (int64_t i = 0; i < inputs; ++i) {
    const double error = std::fabs(expected.data[i] - actual.data[i]);
    if (!(error <= 1e-6 * (1 + expected.data[i]))) fail("entropies", level, inputs, columns, 0, error);
  }
}

// Slots of elements around 1, as a cache of this format has them.
void fill_slots(const Block<char>& slots, CacheFormat format, int64_t width) {
  const int64_t bytes = slot_bytes(format, width);
  std::vector<float> elements(static_cast<size_t>(width));
  for (char* slot = slots.data; slot < slots.data + slots.count; slot += bytes) {
    for (float& element : elements) element = std::normal_distribution<float>()(chance);
    switch (format) {
      case kFloatCache: std::memcpy(slot, elements.data(), static_cast<size_t>(bytes)); break;
      case kHalfCache: store_slot(elements.data(), width, reinterpret_cast<Half*>(slot)); break;
      case kByteCache: store_slot(elements.data(), width, reinterpret_cast<int8_t*>(slot)); break;
    }
  }
}

// The element of a slot, and half of the step to the next one.
std::pair<double, double> element_of(const void* slot, CacheFormat format, int64_t width, int64_t i) {
  if (format == kFloatCache) return {static_cast<const float*>(slot)[i], 0};
  if (format == kHalfCache) {
    const double value = half_to_float(static_cast<const Half*>(slot)[i].bits);
    return {value, std::ldexp(std::fabs(value), -11) + 1e-7};
  }
  const auto* codes = static_cast<const int8_t*>(slot);
  const double scale = std::exp2(codes[width] / 4.0);
  return {codes[i] * scale, scale / 2};
}

void attention_round(const char* level, const Kernels& table) {
  const int64_t kv_heads = any(1, 2), heads = kv_heads * any(1, 3), width = any(0, 1) ? 8 * any(1, 17) : 32 << any(0, 2);
  const int64_t rows = any(1, 40), past = any(0, 200), capacity = past + rows, window = any(0, 2) ? any(1, 150) : -1;
  const auto format = static_cast<CacheFormat>(any(0, 2));
  Block<float> queries(rows * heads * width);
  for (int64_t i = 0; i < queries.count; ++i) queries.data[i] = std::normal_distribution<float>()(chance);
  Block<char> keys(kv_heads * capacity * slot_bytes(format, width)), values(keys.count);
  fill_slots(keys, format, width);
  fill_slots(values, format, width);
  Block<float> expected(queries.count), actual(queries.count), single(queries.count);
  Attention call{rows, heads, kv_heads, width, capacity, past, window, 0.2F, queries.data, format, keys.data, values.data, nullptr};
  for (int64_t head = 0; head < kv_heads; ++head) {
    call.out = expected.data;
    kScalarKernels.attend(call, head, 0, rows);
    call.out = actual.data;
    table.attend(call, head, 0, rows);
    call.out = single.data;
    for (int64_t row = 0; row < rows; ++row) table.attend(call, head, row, row + 1);
  }
  for (int64_t i = 0; i < expected.count; ++i) {
    const double error = std::fabs(expected.data[i] - actual.data[i]);
    if (!(error <= 2e-5)) fail("attention", level, rows, width, past, error);
    if (actual.data[i] != single.data[i]) fail("attention in parts", level, rows, width, past, i);
  }
}

// The same cache in one page and in pages anywhere in a pool, which ends with its last page: the same bits, row by row.
void paged_round(const char* level, const Kernels& table) {
  const int64_t kv_heads = any(1, 2), heads = kv_heads * any(1, 3), width = 8 * any(1, 17), page = 64 * any(1, 3);
  const int64_t rows = any(1, 40), past = any(0, 400), window = any(0, 2) ? any(1, 300) : -1;
  const int64_t used = (past + rows + page - 1) / page, pool = used + any(0, 3);
  const auto format = static_cast<CacheFormat>(any(0, 2));
  const int64_t bytes = slot_bytes(format, width);
  Block<float> queries(rows * heads * width), expected(queries.count), actual(queries.count), single(queries.count);
  for (int64_t i = 0; i < queries.count; ++i) queries.data[i] = std::normal_distribution<float>()(chance);
  Block<char> keys(kv_heads * used * page * bytes), values(keys.count);
  Block<char> paged_keys(pool * kv_heads * page * bytes), paged_values(paged_keys.count);
  fill_slots(keys, format, width);
  fill_slots(values, format, width);
  std::memset(paged_keys.data, 0x7e, static_cast<size_t>(paged_keys.count));  // pages of others: NaN, or large
  std::memset(paged_values.data, 0x7e, static_cast<size_t>(paged_values.count));
  Block<int32_t> pages(used);
  std::vector<int32_t> numbers(static_cast<size_t>(pool));
  for (int64_t i = 0; i < pool; ++i) numbers[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::shuffle(numbers.begin(), numbers.end(), chance);
  std::copy_n(numbers.begin(), used, pages.data);
  Attention whole{rows, heads, kv_heads, width, used * page, past, window, 0.2F, queries.data, format, keys.data, values.data, expected.data};
  Attention paged{rows, heads, kv_heads, width, page, past, window, 0.2F, queries.data, format, paged_keys.data,
                  paged_values.data, actual.data, pages.data};
  const auto size = static_cast<size_t>(page * bytes);
  for (int64_t head = 0; head < kv_heads; ++head) {
    for (int64_t slot = 0; slot < used * page; slot += page) {
      const int64_t from = whole.place(head, slot) * bytes, to = paged.place(head, slot) * bytes;
      std::memcpy(paged_keys.data + to, keys.data + from, size);
      std::memcpy(paged_values.data + to, values.data + from, size);
    }
  }
  for (int64_t head = 0; head < kv_heads; ++head) {
    table.attend(whole, head, 0, rows);
    paged.out = actual.data;
    table.attend(paged, head, 0, rows);
    paged.out = single.data;
    for (int64_t row = 0; row < rows; ++row) table.attend(paged, head, row, row + 1);
  }
  for (int64_t i = 0; i < expected.count; ++i) {
    if (!(expected.data[i] == actual.data[i])) fail("attention in pages", level, rows, width, past, i);
    if (!(actual.data[i] == single.data[i])) fail("a row in pages by itself", level, rows, width, past, i);
  }
}

// A row's queries, keys and values, where the cache ends with its slot.
void store_round(const char* level, const Kernels& table) {
  const int64_t kv_heads = any(1, 2), heads = kv_heads * any(1, 3), width = 8 * any(1, 17), capacity = any(1, 5);
  Block<float> projected((heads + 2 * kv_heads) * width), cosines(width / 2), sines(width / 2);
  const auto format = static_cast<CacheFormat>(any(0, 2));
  const int64_t bytes = slot_bytes(format, width);
  Block<float> queries(heads * width);
  Block<char> keys(kv_heads * capacity * bytes), values(keys.count);
  for (Block<float>* block : {&projected, &cosines, &sines}) {
    for (int64_t i = 0; i < block->count; ++i) block->data[i] = std::normal_distribution<float>()(chance);
  }
  const Attention call{1, heads, kv_heads, width, capacity, capacity - 1, -1, 0.2F, queries.data, format, keys.data,
                       values.data, nullptr};
  table.store_row(call, projected.data, cosines.data, sines.data, 0);
  for (int64_t head = 0; head < heads + 2 * kv_heads; ++head) {
    const float* in = projected.data + head * width;
    const void* out = queries.data + head * width;
    const int64_t kv_head = (head - heads) % kv_heads;
    if (head >= heads) out = (head < heads + kv_heads ? keys : values).data + (kv_head * capacity + capacity - 1) * bytes;
    for (int64_t i = 0; i < width; ++i) {
      const double cosine = cosines.data[i / 2], sine = i % 2 ? sines.data[i / 2] : -sines.data[i / 2];
      const double exact = head < heads + kv_heads ? in[i] * cosine + in[i ^ 1] * sine : in[i];
      const auto [found, step] = element_of(out, head < heads ? kFloatCache : format, width, i);
      if (!(std::fabs(exact - found) <= step * 1.001 + 2e-6)) fail("rotation", level, head, width, i, exact - found);
    }
  }
}

// Rows of layers, in buffers that end where they do.
void rows_round(const char* level, const Kernels& table) {
  const int64_t width = any(1, 70);
  Block<float> values(width), addend(width), weight(width), expected(width), actual(width), sum(width), total(width);
  for (Block<float>* block : {&values, &addend, &weight}) {
    for (int64_t i = 0; i < width; ++i) {
      block->data[i] = std::normal_distribution<float>()(chance) * (any(0, 9) ? 1.0F : 200.0F);
    }
  }
  const auto agree = [&](const char* what, const Block<float>& one, const Block<float>& other, double size) {
    for (int64_t i = 0; i < one.count; ++i) {
      const double error = std::fabs(double(one.data[i]) - double(other.data[i]));
      if (!(error <= 1e-6 * (size + std::fabs(one.data[i])))) fail(what, level, 1, width, i, error);
    }
  };
  kScalarKernels.gate(values.data, addend.data, width, expected.data);
  table.gate(values.data, addend.data, width, actual.data);
  agree("gate", expected, actual, 0);
  for (int64_t i = 0; i < width; ++i) {
    const double x = values.data[i], exact = x / (1 + std::exp(-x)) * addend.data[i];
    // Below -87 the exponential stays where it is: next to nothing.
    if (!(std::fabs(exact - actual.data[i]) <= 1e-6 * std::fabs(exact) + 1e-30)) fail("silu", level, 1, width, i, x);
  }
  const float* added = any(0, 1) ? addend.data : nullptr;
  kScalarKernels.normalize(values.data, added, weight.data, width, 1e-5F, sum.data, expected.data);
  table.normalize(values.data, added, weight.data, width, 1e-5F, total.data, actual.data);
  agree("norm", expected, actual, 1);
  if (added && std::memcmp(sum.data, total.data, static_cast<size_t>(width) * sizeof(float))) {
    fail("the sum before a norm", level, 1, width, 0, 0);
  }
}

void latent_round(const char* level, const Kernels& table) {
  const int64_t kv_heads = any(1, 3), heads = kv_heads * any(1, 3), width = 8 * any(1, 9), vectors = any(1, 20);
  const int64_t bytes = any(1, 3);
  Block<float> queries(bytes * heads * width), row(2 * kv_heads * width * vectors);
  Block<float> expected(queries.count), actual(queries.count);
  for (Block<float>* block : {&queries, &row}) {
    for (int64_t i = 0; i < block->count; ++i) block->data[i] = std::normal_distribution<float>()(chance);
  }
  const LatentAttention call{heads, kv_heads, width, vectors, 0.2F};
  kScalarKernels.attend_latent(call, queries.data, row.data, bytes, expected.data);
  table.attend_latent(call, queries.data, row.data, bytes, actual.data);
  for (int64_t i = 0; i < expected.count; ++i) {
    const double error = std::fabs(expected.data[i] - actual.data[i]);
    if (!(error <= 2e-5)) fail("attention to latents", level, heads, width, vectors, error);
  }
}

// Vectors of a patch and its bytes, against float64.
void bytes_round(const char* level, const Kernels& table) {
  const int64_t kv_heads = any(1, 3), group = any(1, 3), heads = kv_heads * group, width = 8 * any(1, 9);
  const int64_t bytes = any(1, 40), count = any(1, 5);
  Block<float> queries(count * heads * width), rows(bytes * 2 * kv_heads * width), actual(queries.count);
  for (Block<float>* block : {&queries, &rows}) {
    for (int64_t i = 0; i < block->count; ++i) block->data[i] = std::normal_distribution<float>()(chance);
  }
  table.attend_bytes({heads, kv_heads, width, bytes, 0.2F}, queries.data, rows.data, count, actual.data);
  std::vector<double> shares(static_cast<size_t>(bytes));
  for (int64_t line = 0; line < count * heads; ++line) {
    const float* query = queries.data + line * width;
    const float* keys = rows.data + line % heads / group * width;
    double total = 0;
    for (int64_t byte = 0; byte < bytes; ++byte) {
      double score = 0;
      for (int64_t i = 0; i < width; ++i) score += double(query[i]) * keys[byte * 2 * kv_heads * width + i];
      total += shares[static_cast<size_t>(byte)] = std::exp(score * 0.2F);
    }
    for (int64_t i = 0; i < width; ++i) {
      double exact = 0;
      for (int64_t byte = 0; byte < bytes; ++byte) {
        exact += shares[static_cast<size_t>(byte)] / total * keys[(byte * 2 + 1) * kv_heads * width + i];
      }
      const double error = std::fabs(exact - actual.data[line * width + i]);
      if (!(error <= 2e-5)) fail("attention to bytes", level, heads, width, bytes, error);
    }
  }
}

// A row of a table in each of its formats, against float64; the table ends with the row.
void table_round(const char* level, const Kernels& table) {
  const int64_t width = any(1, 90), rows = any(1, 4), block_size = 16 << any(0, 2);
  const int64_t blocks = (width + block_size - 1) / block_size;
  const int bits = 4 << any(0, 3);
  const auto packed = [&](int64_t numbers) { return (numbers * bits + 7) / 8; };
  Block<uint8_t> values(rows * packed(width)), points(rows * packed(blocks));
  Block<float> floats(rows * width), scales(rows * blocks), before(width), actual(width);
  Block<uint16_t> halves(rows * width);
  values.randomize();
  points.randomize();
  for (Block<float>* block : {&floats, &scales, &before}) {
    for (int64_t i = 0; i < block->count; ++i) block->data[i] = std::normal_distribution<float>()(chance);
  }
  for (int64_t i = 0; i < halves.count; ++i) halves.data[i] = random_half();
  const bool offset = any(0, 1) != 0;
  const void* stored = bits == 32 ? static_cast<const void*>(floats.data) : bits == 16 ? static_cast<const void*>(halves.data) : values.data;
  const Table rows_of{rows, width, block_size, blocks, bits, stored, offset ? points.data : nullptr, {scales.data, false, blocks, 1}};
  std::copy_n(before.data, width, actual.data);
  const int64_t row = rows - 1;
  table.add_table_row(rows_of, row, actual.data);
  const auto code = [&](const uint8_t* codes, int64_t i) { return bits == 8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 15; };
  for (int64_t i = 0; i < width; ++i) {
    double element = floats.data[row * width + i];
    if (bits == 16) element = half_to_float(halves.data[row * width + i]);
    if (bits <= 8) {
      const int64_t block = i / block_size;
      const int point = offset ? code(points.data + row * packed(blocks), block) : 1 << (bits - 1);
      element = (code(values.data + row * packed(width), i) - point) * double(scales.data[row * blocks + block]);
    }
    const double exact = before.data[i] + element, error = std::fabs(exact - actual.data[i]);
    if (!(error <= 2e-7 * (std::fabs(element) + std::fabs(exact)) + 1e-30)) fail("a table's row", level, rows, width, bits, error);
  }
}

void all_rounds(const char* level, const Kernels& table, const RecurrenceKernels& recurrence) {
  dense_round(level, table);
  one_round(level, table);
  attention_round(level, table);
  paged_round(level, table);
  store_round(level, table);
  rows_round(level, table);
  latent_round(level, table);
  bytes_round(level, table);
  table_round(level, table);
  recurrence_rounds(level, recurrence, chance());
}

bool emulated([[maybe_unused]] Level level) {
#if defined(EDGEBLT_EMULATED)
  return level == kAvx512 || level == kAmx;
#else
  return false;
#endif
}

}  // namespace
}  // namespace edgeblt

int main(int count, char** arguments) {
  using namespace edgeblt;
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 300;
  for (int round = 0; round < rounds; ++round) {
    for (int number = 0; number < kLevelCount; ++number) {
      const auto level = static_cast<Level>(number);
      const std::string name = kLevelNames[number];
      if (emulated(level)) {
        all_rounds((name + ", emulated").c_str(), kernels(level), recurrence_kernels(level));
      } else if (level_available(level)) {
        all_rounds(name.c_str(), kernels(level), recurrence_kernels(level));
      }
    }
  }
  std::printf("%d rounds agree; levels:", rounds);
  for (int level = 0; level < kLevelCount; ++level) {
    if (emulated(static_cast<Level>(level))) {
      std::printf(" %s by emulation", kLevelNames[level]);
    } else if (level_available(static_cast<Level>(level))) {
      std::printf(" %s", kLevelNames[level]);
    }
  }
  std::printf("\n");
  return 0;
}
