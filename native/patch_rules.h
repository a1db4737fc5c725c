// The rules by which edgeblt::EntropyPatch decides (docs/patching.md), one position at a time: for every kernel, of the
// CPU and of CUDA.
#ifndef EDGEBLT_PATCH_RULES_H
#define EDGEBLT_PATCH_RULES_H

#include <cstdint>

#ifdef __CUDACC__
#define EDGEBLT_ANYWHERE __host__ __device__
#else
#define EDGEBLT_ANYWHERE
#endif

namespace edgeblt {

constexpr int64_t kOffset = 4, kVocabulary = 260;  // ids below 4 are special; byte b is b + 4
constexpr float kLongestMaximum = 16777216;  // float32 counts exactly below it

enum Rule : int64_t { kThreshold, kMonotonic, kThresholdAndRise, kSpace, kStatic, kByte };

struct State {
  float entropy, space, since;
};

struct Settings {
  Rule rule;
  float threshold, threshold_add;
  int64_t max_patch_length, patch_size;
};

// 1 for every id that is no ASCII letter or digit and no UTF-8 continuation byte. As a Gather from the last id on
// would, larger ids count as the last one.
EDGEBLT_ANYWHERE inline float space_like(int64_t id) {
  const int64_t byte = (id < 0 ? 0 : id < kVocabulary ? id : kVocabulary - 1) - kOffset;
  const bool digit = byte >= '0' && byte <= '9';
  const bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
  return digit || letter || (byte >= 0x80 && byte < 0xC0) ? 0.0F : 1.0F;
}

// The state after `id`, as far as the id and its entropy alone decide it.
EDGEBLT_ANYWHERE inline State state_after(int64_t id, float entropy) { return {entropy, space_like(id), 0}; }

// Whether `position` starts a patch by the rule itself, given the ids before it.
EDGEBLT_ANYWHERE inline bool starts(
    const Settings& settings, int64_t position, int64_t id, const State& state, const State& previous) {
  const float rise = state.entropy - previous.entropy;
  switch (settings.rule) {
    case kThreshold: return position <= 1 || state.entropy > settings.threshold;
    case kMonotonic: return position <= 2 || rise > settings.threshold;
    case kThresholdAndRise:
      return position <= 2 || (position > 3 && rise > settings.threshold_add && state.entropy > settings.threshold);
    case kSpace: return position <= 1 || id < kOffset || state.space > previous.space;
    case kStatic: return position % settings.patch_size == 0;
    case kByte: break;
  }
  return position > 0;
}

// The last position up to `position` that the rule itself made a start, as far as `state`, the one before it, tells.
EDGEBLT_ANYWHERE inline int64_t last_start(const Settings& settings, int64_t position, const State& state) {
  // A first id's state means nothing; nor does a count where there is no maximum.
  const bool counted = position && settings.max_patch_length > 0 && state.since >= 0 && state.since < kLongestMaximum;
  return counted ? position - static_cast<int64_t>(state.since) : 0;
}

// Whether `position` starts a patch at all, `last` being the last one up to it that the rule made a start, and `start`
// whether that is itself. Counts in `state`, the one before it.
EDGEBLT_ANYWHERE inline bool starts_within_maximum(
    const Settings& settings, int64_t position, int64_t last, bool start, State& state) {
  if (settings.max_patch_length <= 0) return start;
  const int64_t since = (position - last) % settings.max_patch_length;
  state.since = static_cast<float>(since);
  return since == 0;
}

// What a run of the operator reads.
struct PatchInputs {
  const float* logits;  // [length, width]
  const int64_t* ids;   // [length]
  int64_t length, width, position;
  State state;  // before ids[0]
  Settings settings;
  // Of several sequences: the first row of each and its position, [sequences, 2], and the states before them.
  const int64_t* sequences = nullptr;
  const State* states = nullptr;
  int64_t sequence_count = 0;  // 0: all rows are of one, at `position` and `state`
};

}  // namespace edgeblt

#endif
