// Continues a text with a portable bundle of edgeblt, on ONNX Runtime's C++ API alone.
//
//     examples/cpp/run BUNDLE "Once upon a time" --bytes 200 --temperature 0.7 --top-p 0.95 --seed 1
//
// The loop is that of docs/portable.md: ids and state go in, logits and the next state come out.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

constexpr int64_t kBos = 1, kFirstByte = 4;  // byte b is id b + 4
constexpr size_t kPiece = 256;               // ids of a call: memory grows with their square

// A text as the model has read it: the state, a list of tensors that every call takes and gives anew.
class Text {
 public:
  Text(const std::string& path, const Ort::SessionOptions& options) : session_(environment_, path.c_str(), options) {
    Ort::AllocatorWithDefaultOptions memory;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      const std::string name = session_.GetInputNameAllocated(i, memory).get();
      if (name == "ids") continue;
      inputs_.push_back(name);
      outputs_.push_back("next." + name);
      state_.push_back(zeros(session_.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo(), memory));
    }
    const auto metadata = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("edgeblt", memory);
    const char* ends = metadata ? std::strstr(metadata.get(), "\"ends\"") : nullptr;
    std::stringstream list(ends ? std::strchr(ends, '[') + 1 : "2");  // such as 2, 7]
    for (int64_t id; list >> id; list.ignore()) ends_.push_back(id);
  }

  // Reads ids; gives the logits of the id after them.
  std::vector<float> read(const std::vector<int64_t>& ids) {
    std::vector<float> logits;
    for (size_t start = 0; start < ids.size(); start += kPiece)
      logits = call({ids.begin() + start, ids.begin() + std::min(ids.size(), start + kPiece)});
    return logits;
  }

  bool ends_with(int64_t id) const { return std::count(ends_.begin(), ends_.end(), id) > 0; }
 private:
  // State at the beginning of a text: zeros, and 1 for every dimension that varies.
  static Ort::Value zeros(const Ort::ConstTensorTypeAndShapeInfo& declared, OrtAllocator* memory) {
    std::vector<int64_t> shape = declared.GetShape();
    for (int64_t& size : shape) size = std::max<int64_t>(size, 1);
    Ort::Value value = Ort::Value::CreateTensor(memory, shape.data(), shape.size(), declared.GetElementType());
    const size_t bytes = declared.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? 8 : 4;
    std::memset(value.GetTensorMutableRawData(), 0, bytes * value.GetTensorTypeAndShapeInfo().GetElementCount());
    return value;
  }

  std::vector<float> call(std::vector<int64_t> ids) {
    const int64_t shape[] = {1, static_cast<int64_t>(ids.size())};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> values;
    values.push_back(Ort::Value::CreateTensor<int64_t>(memory, ids.data(), ids.size(), shape, 2));
    std::move(state_.begin(), state_.end(), std::back_inserter(values));
    std::vector<const char*> inputs, outputs;
    for (const std::string& name : inputs_) inputs.push_back(name.c_str());
    for (const std::string& name : outputs_) outputs.push_back(name.c_str());
    auto results = session_.Run({}, inputs.data(), values.data(), values.size(), outputs.data(), outputs.size());
    std::move(results.begin() + 1, results.end(), state_.begin());
    const int64_t size = results[0].GetTensorTypeAndShapeInfo().GetShape()[2];
    const float* last = results[0].GetTensorData<float>() + (ids.size() - 1) * size;  // [1, T, size]
    return {last, last + size};
  }

  Ort::Env environment_;
  Ort::Session session_;
  std::vector<std::string> inputs_{"ids"}, outputs_{"logits"};  // then the state, and the next state
  std::vector<Ort::Value> state_;
  std::vector<int64_t> ends_;
};

// The likeliest id, or one sampled at a temperature from the top_k likeliest, of these the fewest that make up top_p.
int64_t sample(std::vector<float> logits, double temperature, size_t top_k, double top_p, std::mt19937_64& random) {
  logits[0] = logits[kBos] = logits[3] = -INFINITY;  // these have no meaning within a text
  std::vector<int64_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (temperature <= 0) return ids[0];
  if (top_k > 0) ids.resize(std::min(top_k, ids.size()));
  std::vector<double> weights;
  for (int64_t id : ids) weights.push_back(std::exp((logits[id] - logits[ids[0]]) / temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  size_t count = 0, chosen = 0;
  double kept = 0;  // the sum of the first `count` weights
  while (count < weights.size() && kept < top_p * total) kept += weights[count++];
  double place = static_cast<double>(random() >> 11) * 0x1p-53 * kept;  // the same on every platform
  while (chosen + 1 < count && (place -= weights[chosen]) >= 0) ++chosen;
  return ids[chosen];
}

// Number of leading bytes after which no character of UTF-8 is cut; bytes that are no UTF-8 are not held back.
size_t whole_characters(const std::string& text) {
  for (size_t back = 1; back <= std::min<size_t>(text.size(), 3); ++back) {
    const unsigned char byte = text[text.size() - back];
    if (byte >= 0xC0) return (byte >= 0xF0 ? 4u : byte >= 0xE0 ? 3u : 2u) > back ? text.size() - back : text.size();
    if (byte < 0x80) break;
  }
  return text.size();
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int main(int count, char** arguments) try {
  std::map<std::string, double> options{{"--bytes", 200}, {"--temperature", 0}, {"--top-k", 0},
                                        {"--top-p", 1},   {"--seed", 0},        {"--threads", 1}};
  for (int i = 3; i + 1 < count; i += 2) options.at(arguments[i]) = std::stod(arguments[i + 1]);
  if (count < 3 || count % 2 == 0) throw std::out_of_range("");

  Ort::SessionOptions session;
  session.SetIntraOpNumThreads(static_cast<int>(options["--threads"]));
  Text text(std::string(arguments[1]) + "/model.onnx", session);
  std::mt19937_64 random(static_cast<uint64_t>(options["--seed"]));
  std::vector<int64_t> ids{kBos};
  for (const unsigned char byte : std::string(arguments[2])) ids.push_back(byte + kFirstByte);
  std::string pending;  // the beginning of a character whose other bytes are to come
  double start = seconds(), first = start, written = 0;
  for (; written < options["--bytes"]; ++written) {
    const std::vector<float> logits = text.read(ids);
    if (written == 0) first = seconds();
    const int64_t id = sample(logits, options["--temperature"], static_cast<size_t>(options["--top-k"]),
                              options["--top-p"], random);
    if (text.ends_with(id) || id < kFirstByte) break;
    ids = {id};
    pending += static_cast<char>(id - kFirstByte);
    const size_t whole = whole_characters(pending);
    std::cout << pending.substr(0, whole) << std::flush;
    pending.erase(0, whole);
  }
  std::cout << pending << std::endl;
  std::cerr << "first byte: " << first - start << " s, then " << (written - 1) / (seconds() - first) << " bytes/s\n";
} catch (const std::logic_error&) {  // an option that is none, or a value that is no number
  std::cerr << "run BUNDLE PROMPT [--bytes N] [--temperature T] [--top-k K] [--top-p P] [--seed S] [--threads N]\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
