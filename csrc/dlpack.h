// The part of DLPack's C exchange API (1.3) that reads a tensor without owning it; struct layouts as in the standard.
// torch provides the API since 2.10, so one binary works with all later versions without linking against torch.
#pragma once
#include <cstdint>

namespace ux::dlpack {

constexpr uint32_t kMajor = 1;
constexpr const char* kCapsule = "dlpack_exchange_api";

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : uint8_t { kFloat = 2, kBfloat = 4 };

struct Tensor {
    void* data;
    int32_t device_type, device_index;
    int32_t n_dims;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t* shape;    // owned by the tensor: valid while it exists and is not resized
    int64_t* strides;  // elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    void* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, Tensor* out);  // 0, or -1 with a Python error set
    void* current_stream;
};

}  // namespace ux::dlpack
