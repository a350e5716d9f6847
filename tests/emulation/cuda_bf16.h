// Conversions of bfloat16, for the emulator.
#pragma once
#include "../../csrc/cpu/half.h"

struct __nv_bfloat16 { uint16_t bits; };
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return ux::from_bf16(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {ux::to_bf16(x)}; }
