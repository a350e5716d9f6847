// Packs of eight or four elements of one operand: loads and stores of 16 bytes (8 for four halves), or single elements if
// the address is not aligned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../tensors.h"

namespace ux::cuda {

constexpr int kMaxPack = 8;  // rows are aligned for packs of eight

// The dtype is a run-time argument, not a template argument: it is the same for all threads of a warp, so the branch
// does not diverge.
__device__ inline float to_float(uint16_t half, DType dtype) {
    return dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(half)) : __half2float(__ushort_as_half(half));
}

__device__ inline uint16_t to_half(float x, DType dtype) {
    return dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}

// Two 16-bit floats in one word, the first in the lower bits.
__device__ inline void to_floats(uint32_t word, DType dtype, float* out) {
    if (dtype == DType::bf16) {
        out[0] = __uint_as_float(word << 16), out[1] = __uint_as_float(word & 0xffff0000u);
    } else {
        out[0] = __half2float(__ushort_as_half(word & 0xffff)), out[1] = __half2float(__ushort_as_half(word >> 16));
    }
}

__device__ inline uint32_t to_halves(const float* x, DType dtype) {
    return to_half(x[0], dtype) | uint32_t(to_half(x[1], dtype)) << 16;
}

// Load 16 or 8 bytes, or zeros if not enabled. Volatile: otherwise the compiler moves each load to its first use, and the
// loads wait for one another.
__device__ inline void load16(const void* address, bool enabled, uint32_t* words) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
        "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=&r"(words[0]), "=&r"(words[1]), "=&r"(words[2]), "=&r"(words[3])
        : "l"(address), "r"(static_cast<uint32_t>(enabled)));
#else  // tests/emulation
    const uint4 loaded = enabled ? *static_cast<const uint4*>(address) : make_uint4(0, 0, 0, 0);
    words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
#endif
}

__device__ inline void load8(const void* address, bool enabled, uint32_t* words) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %3, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\t"
        "@p ld.global.v2.u32 {%0, %1}, [%2];\n\t}"
        : "=&r"(words[0]), "=&r"(words[1])
        : "l"(address), "r"(static_cast<uint32_t>(enabled)));
#else
    const uint2 loaded = enabled ? *static_cast<const uint2*>(address) : make_uint2(0, 0);
    words[0] = loaded.x, words[1] = loaded.y;
#endif
}

// One operand of a row, starting at the first element of a chunk.
struct ChunkOperand {
    char* base;  // null: the operand is absent
    DType dtype;
    bool aligned;  // 16-byte aligned at the chunk's first pack

    ChunkOperand() = default;
    __device__ ChunkOperand(char* address, DType type, int head) : base(address), dtype(type) {
        aligned = (reinterpret_cast<uintptr_t>(address) + head * width()) % 16 == 0;
    }
    __device__ int width() const { return dtype == DType::f32 ? 4 : 2; }

    __device__ float load_one(int i) const {
        return dtype == DType::f32 ? reinterpret_cast<const float*>(base)[i]
                                   : to_float(reinterpret_cast<const uint16_t*>(base)[i], dtype);
    }
    __device__ void store_one(int i, float x) const {
        if (dtype == DType::f32) reinterpret_cast<float*>(base)[i] = x;
        else reinterpret_cast<uint16_t*>(base)[i] = to_half(x, dtype);
    }

    // Loading is split into fetch and decode, so that the loads of all operands are issued before the first is used. The
    // words of a pack are floats, pairs of 16-bit floats, single 16-bit floats (address not aligned), or zeros.
    template <Loads loads, int kPack> __device__ void fetch(int i, bool enabled, uint32_t* words) const {
        if (loads == Loads::floats || (loads == Loads::mixed && dtype == DType::f32 && aligned)) {
#pragma unroll
            for (int k = 0; k < kPack; k += 4) load16(base + 4 * (i + k), enabled, words + k);
        } else if (loads == Loads::halves || (loads == Loads::mixed && aligned)) {
            if (kPack == 8) load16(base + 2 * i, enabled, words);
            else load8(base + 2 * i, enabled, words);
        } else {
#pragma unroll
            for (int k = 0; k < kPack; ++k)
                words[k] = !enabled              ? 0
                           : dtype == DType::f32 ? reinterpret_cast<const uint32_t*>(base)[i + k]
                                                 : reinterpret_cast<const uint16_t*>(base)[i + k];
        }
    }
    template <Loads loads, int kPack> __device__ void decode(const uint32_t* words, float* out) const {
        if (loads == Loads::floats || (loads == Loads::mixed && dtype == DType::f32)) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) out[k] = __uint_as_float(words[k]);
        } else if (loads == Loads::halves || aligned) {
#pragma unroll
            for (int k = 0; k < kPack / 2; ++k) to_floats(words[k], dtype, out + 2 * k);
        } else {
#pragma unroll
            for (int k = 0; k < kPack; ++k) out[k] = to_float(static_cast<uint16_t>(words[k]), dtype);
        }
    }
    template <Loads loads, int kPack> __device__ void store(int i, const float* x) const {
        if (loads == Loads::mixed && !aligned) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) store_one(i + k, x[k]);
        } else if (loads == Loads::floats || (loads == Loads::mixed && dtype == DType::f32)) {
            auto* out = reinterpret_cast<float4*>(base + 4 * i);
#pragma unroll
            for (int k = 0; k < kPack / 4; ++k)
                out[k] = make_float4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
        } else if (kPack == 8) {
            *reinterpret_cast<uint4*>(base + 2 * i) = make_uint4(
                to_halves(x, dtype), to_halves(x + 2, dtype), to_halves(x + 4, dtype), to_halves(x + 6, dtype));
        } else {
            *reinterpret_cast<uint2*>(base + 2 * i) = make_uint2(to_halves(x, dtype), to_halves(x + 2, dtype));
        }
    }
};

}  // namespace ux::cuda
