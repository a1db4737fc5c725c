// Registration of a library's operators in domain `edgeblt`.
#include <exception>
#include <string>

#include "edgeblt.h"
#include "operator.h"

namespace edgeblt {
namespace {

std::string registration_error;

ort::Status* add_operators(const ort::Api& api, ort::SessionOptions* options) {
  // ONNX Runtime keeps a pointer to the domain, for all sessions: one is made, and stays.
  static ort::CustomOpDomain* domain = nullptr;
  if (!domain) {
    ort::CustomOpDomain* made = nullptr;
    if (ort::Status* status = api.create_domain("edgeblt", &made)) return status;
    for (const Operator* op : operators()) {
      if (ort::Status* status = api.add_op(made, op)) return status;
    }
    domain = made;
  }
  return api.add_domain(options, domain);
}

}  // namespace
}  // namespace edgeblt

const char* edgeblt_registration_error(void) {
  return edgeblt::registration_error.empty() ? nullptr : edgeblt::registration_error.c_str();
}

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace edgeblt;
  const auto* runtime = reinterpret_cast<const ort::ApiBase*>(base);
  registration_error.clear();
  const ort::Api* api = runtime->get_api(ort::kApiVersion);
  if (!api) {
    registration_error = std::string("onnxruntime ") + runtime->version_string() + " has no C API version " +
                         std::to_string(ort::kApiVersion) + "; install a newer one";
    const ort::Api* oldest = runtime->get_api(1);  // enough to say so
    if (!oldest) return nullptr;
    return reinterpret_cast<OrtStatus*>(oldest->create_status(ort::kFail, registration_error.c_str()));
  }
  try {
    return reinterpret_cast<OrtStatus*>(add_operators(*api, reinterpret_cast<ort::SessionOptions*>(options)));
  } catch (const std::exception&) {
    return reinterpret_cast<OrtStatus*>(api->create_status(ort::kFail, "there is no memory for edgeblt's operators"));
  }
}
