#include "grad_values.h"

#include "../common/check.h"

namespace bigmodel {

int64_t check_gradient(const View& grad, const View& x, const View& out) {
  check_float(grad, "grad");
  check_dtype(x, "x", grad.dtype);
  const int64_t m = check_features(x, "x");
  check_features(grad, "grad");
  check_ndim(grad, "grad", x.ndim);
  for (int d = 0; d + 1 < x.ndim; ++d) check_size(grad, "grad", d, x.sizes[d]);
  check_dtype(out, "out", grad.dtype);
  return m;
}

}  // namespace bigmodel
