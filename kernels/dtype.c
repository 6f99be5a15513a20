// Number formats that need more than a line. See dtype.h.
#include "kernels/dtype.h"

const char *dtype_name(enum dtype t)
{
    static const char *const names[] = {"F32", "BF16", "F8_E4M3", "I32", "U8", "F16"};
    return names[t];
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float fp8_to_f32(uint8_t q)
{
    uint32_t sign = (uint32_t)(q & 0x80) << 24, exponent = q >> 3 & 15, mantissa = q & 7;
    if (exponent == 15 && mantissa == 7)
        return from_bits(sign | 0x7fc00000u);
    if (exponent == 0) { // mantissa * 2^-9, exact
        float f = (float)mantissa * 0.001953125f;
        return sign ? -f : f;
    }
    return from_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

uint8_t f32_to_fp8(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint8_t sign = (uint8_t)(u >> 24 & 0x80);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7f;
    if (u >= 0x43e00000u) // >= 448, infinity included
        return sign | 0x7e;
    if (u < 0x3c800000u) { // below 2^-6: subnormal steps of 2^-9; adding 2^14 leaves them in the last bits,
                           // rounded to even
        float shifted = from_bits(u) + 16384.0f;
        uint32_t bits;
        memcpy(&bits, &shifted, 4);
        return sign | (uint8_t)(bits & 0xff); // 8 is the code of the smallest normal
    }
    u += 0x7ffffu + (u >> 20 & 1);
    return sign | (uint8_t)((u >> 20) - (120 << 3));
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent == 0) { // mantissa * 2^-24, exact
        float f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}
