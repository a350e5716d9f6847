// Conversions of float16, for the emulator.
#pragma once
#include "../../csrc/cpu/half.h"

struct __half { uint16_t bits; };
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return ux::from_f16(x.bits); }
inline __half __float2half_rn(float x) { return {ux::to_f16(x)}; }
