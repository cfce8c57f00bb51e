#include "control.h"

#include <cstring>

#include "block.h"

namespace bigmodel::emulator {

namespace {

// Sites are looked up at every barrier of every thread: by a few bits first.
struct Known {
  Site site;
  const char* what = nullptr;
  bool skipped = false;
};
constexpr size_t kCache = 256;
Known cache[kCache];

const Known& look_up(Site site, const char* what) {
  Known& known = cache[(static_cast<size_t>(site.line) * 5 + reinterpret_cast<size_t>(site.file) / 8) % kCache];
  if (known.site.file == site.file && known.site.line == site.line && known.what == what) return known;
  known = {site, what, to_string(site) == settings().skip};
  const std::string name = to_string(site);
  bool listed = false;
  for (const SiteReport& other : report->sites) listed = listed || (other.site == name && other.what == what);
  if (!listed) report->sites.push_back({name, what});
  return known;
}

}  // namespace

Settings& settings() {
  static Settings instance;
  return instance;
}

std::vector<LaunchReport>& reports() {
  static std::vector<LaunchReport> list;
  return list;
}

std::string to_string(Site site) {
  const char* start = site.file ? std::strrchr(site.file, '/') : nullptr;
  while (start && start > site.file && start[-1] != '/') --start;
  return std::string(start ? start : site.file ? site.file : "?") + ":" + std::to_string(site.line);
}

void start_sites() {
  for (Known& known : cache) known = Known();
}

bool synchronises(Site site, const char* what) { return !look_up(site, what).skipped; }

}  // namespace bigmodel::emulator
