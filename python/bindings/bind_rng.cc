// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "bindings.h"
#include "treespec/error.h"
#include "treespec/rng.h"

namespace treespec::python {
namespace py = pybind11;

void bind_rng(py::module_& m) {
  m.def(
      "philox",
      [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
        const PhiloxWords out = philox(c0, c1, c2, c3, seed);
        return std::make_tuple(out.word[0], out.word[1], out.word[2], out.word[3]);
      },
      py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("seed"),
      "Philox4x32-10: four words of a counter; the key is the seed's two halves.");
  m.def(
      "random53",
      [](uint64_t seed, uint32_t sequence_id, uint32_t position, uint32_t purpose,
         uint32_t node_slot, uint32_t draw_index) {
        TREESPEC_CHECK(purpose <= 4, "random53: purpose must be in [0, 4], got ", purpose);
        return random53({seed, sequence_id, position}, static_cast<Purpose>(purpose), node_slot,
                        draw_index);
      },
      py::arg("seed"), py::arg("sequence_id"), py::arg("position"), py::arg("purpose"),
      py::arg("node_slot"), py::arg("draw_index"), "53 random bits of one counter.");
  m.def("child_slot", &child_slot, py::arg("parent_slot"), py::arg("token"),
        "Path slot of a child; slot(root) = 0.");
}

}  // namespace treespec::python
