// What operators share, against a runtime that is made up here: sizes that would wrap, attributes out of range, and
// whatever a kernel or a task of its raises ends as a status. Meant to run under sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../operator.h"

namespace edgeblt {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int64_t>::max(), kSmallest = std::numeric_limits<int64_t>::min();

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("does not hold: %s\n", what);
  std::exit(1);
}

template <typename Error, typename Function>
std::string message_of(const char* what, Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  expect(false, what);
  return {};
}

// The runtime: a status is its message; one integer attribute, `number`; tasks run on threads of their own.
std::string said;
int64_t number = 0;
int released = 0;

ort::Status* create_status(int, const char* message) {
  said = message;
  return reinterpret_cast<ort::Status*>(&said);
}

void release_status(ort::Status*) { ++released; }

ort::Status* int_attribute(const ort::KernelInfo*, const char* name, int64_t* value) {
  *value = number;
  return std::strcmp(name, "number") ? create_status(1, "no attribute") : nullptr;
}

ort::Status* float_attribute(const ort::KernelInfo*, const char* name, float* value) {
  *value = static_cast<float>(number) / 0.0F;
  return std::strcmp(name, "number") ? create_status(1, "no attribute") : nullptr;
}

ort::Status* input_count(const ort::KernelContext*, size_t* count) {
  *count = 0;
  return nullptr;
}

ort::Status* parallel_for(const ort::KernelContext*, void (*task)(void*, size_t), size_t total, size_t, void* data) {
  std::vector<std::thread> threads;
  for (size_t index = 0; index < total; ++index) threads.emplace_back(task, data, index);
  for (std::thread& thread : threads) thread.join();
  return nullptr;
}

ort::Api make_api() {
  ort::Api api{};
  api.functions[0] = reinterpret_cast<void*>(create_status);
  api.functions[85] = reinterpret_cast<void*>(float_attribute);
  api.functions[86] = reinterpret_cast<void*>(int_attribute);
  api.functions[88] = reinterpret_cast<void*>(input_count);
  api.functions[93] = reinterpret_cast<void*>(release_status);
  api.functions[274] = reinterpret_cast<void*>(parallel_for);
  return api;
}

const ort::Api api = make_api();

void sizes_do_not_wrap() {
  expect(product_of({3, 4, 5}) == 60 && sum_of({3, -4, 5}) == 4, "small sizes");
  expect(product_of({kLargest, kLargest, 0}) == 0, "nothing of much is nothing");
  expect(product_of({int64_t{1} << 31, int64_t{1} << 31}) == int64_t{1} << 62, "2 ** 62");
  message_of<SizeError>("a product of 2 ** 63", [] { product_of({int64_t{1} << 32, int64_t{1} << 31}); });
  message_of<SizeError>("a product that wraps to 16", [] { product_of({(int64_t{1} << 60) + 1, 16}); });
  message_of<SizeError>("a sum of 2 ** 63", [] { sum_of({kLargest, 1}); });
  message_of<SizeError>("a sum below", [] { sum_of({kSmallest, -1}); });
  Tensor tensor;
  tensor.shape = {int64_t{1} << 40, int64_t{1} << 40};
  message_of<SizeError>("a tensor of 2 ** 80", [&] { tensor.count(); });
  tensor.shape = {int64_t{1} << 40, int64_t{1} << 40, 0};
  expect(tensor.count() == 0, "an empty tensor");
}

void attributes_are_bounded() {
  const Node node(api, nullptr);
  for (const int64_t value : {int64_t{1}, int64_t{7}, int64_t{8}}) {
    number = value;
    expect(node.attribute("number", 1, 8) == value, "an attribute in range");
  }
  for (const int64_t value : {int64_t{0}, int64_t{9}, kSmallest, kLargest, (int64_t{1} << 60) + 7}) {
    number = value;
    const std::string why = message_of<OperatorError>("out of range", [&] { node.attribute("number", 1, 8); });
    expect(why == "number is " + std::to_string(value) + ", not 1 to 8; export the model again", why.c_str());
  }
  released = 0;
  message_of<OperatorError>("missing", [&] { node.attribute("other", 1, 8); });
  message_of<OperatorError>("missing", [&] { node.float_attribute("other"); });
  expect(released == 2, "the runtime's own status is released");
  for (const int64_t value : {-1, 0, 1}) {
    number = value;
    message_of<OperatorError>("not finite", [&] { node.float_attribute("number"); });
  }
}

enum Raised { kNothing, kMemory, kLength, kOperator, kInteger };
Raised raised = kNothing;
bool in_tasks = false;

void raise() {
  if (raised == kMemory) throw std::bad_alloc();
  if (raised == kLength) std::vector<float>().resize(std::numeric_limits<size_t>::max());
  if (raised == kOperator) throw OperatorError("x is odd");
  if (raised == kInteger) throw 7;
}

struct Raising final : Kernel {
  void compute(const Call& call) override {
    if (!in_tasks) return raise();
    call.parallel(8, [](size_t task) {
      if (task % 2) raise();
    });
  }
};

void what_is_raised_becomes_a_status() {
  const Operator op("Raising", -1, {}, 0, {}, [](const Node&) -> Kernel* {
    if (!in_tasks) raise();
    return new Raising;
  });
  const struct {
    Raised what;
    const char* message;
  } cases[] = {{kMemory, "edgeblt::Raising: there is not enough memory; feed less at once, or close other programs"},
               {kLength, "edgeblt::Raising: there is not enough memory; feed less at once, or close other programs"},
               {kOperator, "edgeblt::Raising: x is odd"},
               {kInteger, "edgeblt::Raising: it failed and does not say why"}};
  void* kernel = nullptr;
  raised = kNothing;
  expect(!op.create_kernel_with_status(&op, &api, nullptr, &kernel), "a kernel that raises nothing is made");
  for (const bool tasks : {false, true}) {
    in_tasks = tasks;
    for (const auto& [what, message] : cases) {
      raised = what;
      expect(op.compute_with_status(kernel, nullptr) != nullptr && said == message, said.c_str());
      void* none = nullptr;
      if (!tasks) expect(op.create_kernel_with_status(&op, &api, nullptr, &none) && said == message, said.c_str());
    }
    raised = kNothing;
    expect(op.compute_with_status(kernel, nullptr) == nullptr, "and the next run is as if nothing had been");
  }
  op.destroy_kernel(kernel);
}

}  // namespace
}  // namespace edgeblt

int main() {
  edgeblt::sizes_do_not_wrap();
  edgeblt::attributes_are_bounded();
  edgeblt::what_is_raised_becomes_a_status();
  std::printf("operators hold\n");
  return 0;
}
