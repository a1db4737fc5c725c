// Rows sorted by the patches they belong to.
#ifndef EDGEBLT_PATCH_ROWS_H
#define EDGEBLT_PATCH_ROWS_H

#include <initializer_list>
#include <vector>

#include "operator.h"

namespace edgeblt {

struct PatchRows {
  std::vector<int64_t> order;  // numbers of rows: those of the first patch in their order, then those of the next
  std::vector<int64_t> ends;   // where each patch's rows end in `order`

  // `indices` name the patch of each row, int64, one tensor's rows after the other's; rows of patch `patches` are left
  // out. Raises OperatorError for an index that is not 0 to `patches`.
  PatchRows(std::initializer_list<Tensor> indices, int64_t patches) : ends(static_cast<size_t>(patches)) {
    const auto each = [&](const auto& visit) {
      int64_t row = 0;
      for (const Tensor& index : indices) {
        const auto* patch = static_cast<const int64_t*>(index.data);
        for (int64_t i = 0; i < index.shape[0]; ++i, ++row) visit(row, patch[i]);
      }
    };
    each([&](int64_t, int64_t patch) {
      if (patch < 0 || patch > patches) {
        throw OperatorError("a byte is of patch " + std::to_string(patch) + "; it must be 0 to " +
                            std::to_string(patches));
      }
      if (patch < patches) ++ends[static_cast<size_t>(patch)];
    });
    int64_t total = 0;
    for (int64_t& place : ends) {
      total += place;
      place = total - place;
    }
    order.resize(static_cast<size_t>(total));
    each([&](int64_t row, int64_t patch) {
      if (patch < patches) order[static_cast<size_t>(ends[static_cast<size_t>(patch)]++)] = row;
    });
  }

  int64_t patches() const { return static_cast<int64_t>(ends.size()); }
  int64_t rows() const { return static_cast<int64_t>(order.size()); }
  int64_t row(int64_t place) const { return order[static_cast<size_t>(place)]; }
  int64_t begin(int64_t patch) const { return patch ? end(patch - 1) : 0; }
  int64_t end(int64_t patch) const { return ends[static_cast<size_t>(patch)]; }
};

}  // namespace edgeblt

#endif
