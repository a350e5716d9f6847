// Portable, exact conversions between float and half precision; kernels.cpp uses processor instructions where it can.
#pragma once
#include <cstring>

#include "../tensors.h"

namespace ux {

UX_HD float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

UX_HD uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

UX_HD float from_bf16(uint16_t h) { return float_of_bits(uint32_t(h) << 16); }

UX_HD uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of_float(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t(rounded);
}

UX_HD float from_f16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, body = h & 0x7fff;
    const uint32_t bits =
        body >= 0x7c00 ? 0x7f800000 | (body << 13) : bits_of_float(float_of_bits(body << 13) * 0x1p112f);
    return float_of_bits(bits | sign);
}

UX_HD uint16_t to_f16(float x) {
    uint32_t bits = bits_of_float(x);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
    if (bits < 0x38800000)                         // subnormal in half precision: float addition rounds it
        return sign | uint16_t(bits_of_float(float_of_bits(bits) + 0.5f) - 0x3f000000);
    bits += 0xfff + ((bits >> 13) & 1);
    return sign | uint16_t((bits - 0x38000000) >> 13);
}

}  // namespace ux
