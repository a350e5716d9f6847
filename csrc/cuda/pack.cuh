// Eight elements of one operand: 16-byte loads and stores for every dtype, by element where an address is not aligned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../tensors.h"

namespace ux::cuda {

constexpr int kPack = 8;

// The dtype is a tag, the same for all threads of a warp, so the switch costs a predictable branch, not a template.
__device__ inline float to_float(uint16_t half, DType dtype) {
    return dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(half)) : __half2float(__ushort_as_half(half));
}

__device__ inline uint16_t to_half(float x, DType dtype) {
    return dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}

// One operand of one row, from the first element of a chunk on.
struct Stream {
    char* base;  // null: absent
    DType dtype;
    bool aligned;  // at the chunk's first pack

    __device__ Stream(char* address, DType type, int head) : base(address), dtype(type) {
        aligned = (reinterpret_cast<uintptr_t>(address) + head * width()) % 16 == 0;
    }
    __device__ int width() const { return dtype == DType::f32 ? 4 : 2; }

    __device__ float load_one(int i) const {
        return dtype == DType::f32 ? reinterpret_cast<const float*>(base)[i] : to_float(reinterpret_cast<const uint16_t*>(base)[i], dtype);
    }
    __device__ void store_one(int i, float x) const {
        if (dtype == DType::f32) reinterpret_cast<float*>(base)[i] = x;
        else reinterpret_cast<uint16_t*>(base)[i] = to_half(x, dtype);
    }

    // In two halves, so that the loads of all operands are under way before the first is waited for. The words hold
    // eight floats, or four pairs of halves, or eight single halves where the address is not aligned.
    __device__ void fetch(int i, uint32_t* words) const {
        if (dtype == DType::f32 && aligned) {
            const auto* in = reinterpret_cast<const uint4*>(base + 4 * i);
            const uint4 low = in[0], high = in[1];
            words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
            words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
        } else if (aligned) {
            const uint4 all = *reinterpret_cast<const uint4*>(base + 2 * i);
            words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
        } else {
#pragma unroll
            for (int k = 0; k < kPack; ++k)
                words[k] = dtype == DType::f32 ? reinterpret_cast<const uint32_t*>(base)[i + k] : reinterpret_cast<const uint16_t*>(base)[i + k];
        }
    }
    __device__ void decode(uint32_t* words, float* out) const {
        if (dtype == DType::f32) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) out[k] = __uint_as_float(words[k]);
            return;
        }
        if (aligned) {
#pragma unroll
            for (int k = kPack - 1; k >= 0; --k) words[k] = k % 2 ? words[k / 2] >> 16 : words[k / 2] & 0xffff;
        }
#pragma unroll
        for (int k = 0; k < kPack; ++k) out[k] = to_float(static_cast<uint16_t>(words[k]), dtype);
    }
    __device__ void store(int i, const float* x) const {
        if (!aligned) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) store_one(i + k, x[k]);
        } else if (dtype == DType::f32) {
            auto* out = reinterpret_cast<float4*>(base + 4 * i);
            out[0] = make_float4(x[0], x[1], x[2], x[3]);
            out[1] = make_float4(x[4], x[5], x[6], x[7]);
        } else {
            uint32_t words[kPack / 2];
#pragma unroll
            for (int k = 0; k < kPack / 2; ++k) words[k] = to_half(x[2 * k], dtype) | uint32_t(to_half(x[2 * k + 1], dtype)) << 16;
            *reinterpret_cast<uint4*>(base + 2 * i) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
};

}  // namespace ux::cuda
