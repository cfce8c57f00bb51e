// Python tensor -> View, through the DLPack exchange table handed over at import.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "../common/view.h"
#include "dlpack.h"

namespace bigmodel {

// torch.Tensor, which publishes the exchange table.
void set_exchange_api(const pybind11::type& tensor_type);
const dlpack::ExchangeApi& exchange_api();

// Throws a Python TypeError that names the argument if it is not a tensor on the given kind of device.
View view(pybind11::handle tensor, const char* name, dlpack::DeviceType device = dlpack::kCPU);

// None gives no view.
std::optional<View> optional_view(pybind11::handle tensor, const char* name, dlpack::DeviceType device = dlpack::kCPU);

// A tensor to be read, with what keeps it alive if it had to be copied to be contiguous.
struct DenseTensor {
  pybind11::object copy;
  View view;
};
DenseTensor dense(pybind11::handle tensor, const char* name);
std::optional<DenseTensor> optional_dense(pybind11::handle tensor, const char* name);

}  // namespace bigmodel
