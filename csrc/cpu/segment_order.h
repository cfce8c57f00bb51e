// Where the rows of a panel-CSR matrix lie (panel_csr.h), from how many entries they have.
#pragma once

#include <cstdint>

namespace bigmodel {

// crow[1 + p * n + r] is the number of entries of row r in panel p, at most 256. On return crow is as in panel_csr.h,
// and with `order` (which may be null) each panel's rows are sorted by that number within their block; rows of equal
// length stay as they were. Returns the number of entries; throws if there are 2^31 or more.
int64_t order_segments(int64_t panels, int64_t n, int32_t* crow, int32_t* order);

}  // namespace bigmodel
