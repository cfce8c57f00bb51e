// How tests steer the emulator, and what it reports.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>

#include "../../emulator/control.h"

namespace py = pybind11;

namespace bigmodel {

using namespace emulator;

namespace {

Schedule parse_schedule(const std::string& name) {
  if (name == "ascending") return Schedule::ascending;
  if (name == "descending") return Schedule::descending;
  if (name == "random") return Schedule::random;
  throw std::invalid_argument("schedule must be ascending, descending or random, got '" + name + "'");
}

// The compute capability that the device claims unless a test says another one, times 10.
int usual_architecture() {
  const char* value = std::getenv("BIGMODEL_EMULATED_ARCHITECTURE");
  if (!value || !*value) return Settings().architecture;
  for (const char* known : {"75", "80", "86", "89", "90", "100"})
    if (std::string(value) == known) return std::atoi(value);
  throw std::invalid_argument(std::string("BIGMODEL_EMULATED_ARCHITECTURE must be 75, 80, 86, 89, 90 or 100, got '") +
                              value + "'");
}

py::dict to_dict(const LaunchReport& r) {
  py::dict d;
  d["kernel"] = r.kernel;
  d["grid"] = py::make_tuple(r.grid.x, r.grid.y, r.grid.z);
  d["block"] = py::make_tuple(r.block.x, r.block.y, r.block.z);
  d["shared_bytes"] = r.shared_bytes;
  d["matrix_loads"] = r.matrix_loads;
  d["matrix_conflicts"] = r.matrix_conflicts;
  d["shared_accesses"] = r.shared_accesses;
  d["shared_conflicts"] = r.shared_conflicts;
  py::list sites;
  for (const SiteReport& s : r.sites) sites.append(py::make_tuple(s.site, s.what));
  d["sites"] = sites;
  return d;
}

}  // namespace

void register_emulator(py::module_& m) {
  const int architecture = settings().architecture = usual_architecture();
  m.def(
      "configure",
      [](const std::string& schedule, uint64_t seed, const std::string& skip, int architecture, int multiprocessors) {
        settings() = {parse_schedule(schedule), seed, skip, architecture, multiprocessors};
      },
      py::kw_only(), py::arg("schedule") = "ascending", py::arg("seed") = 0, py::arg("skip") = "",
      py::arg("architecture") = architecture, py::arg("multiprocessors") = 4);
  m.def("take_reports", [] {
    py::list list;
    for (const LaunchReport& r : reports()) list.append(to_dict(r));
    reports().clear();
    return list;
  });
}

}  // namespace bigmodel
