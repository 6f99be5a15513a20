// Number formats. bf16 and FP8 conversions are round-to-nearest-even and total (NaN, infinities, subnormals).
#ifndef KERNELS_DTYPE_H
#define KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DT_F32, DT_BF16, DT_FP8, DT_I32, DT_U8, DT_F16 };

static inline size_t dtype_bytes(enum dtype t)
{
    return t == DT_F32 || t == DT_I32 ? 4 : t == DT_BF16 || t == DT_F16 ? 2 : 1;
}
const char *dtype_name(enum dtype t); // safetensors names: F32, BF16, F8_E4M3, I32, U8, F16

static inline float bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40); // quiet NaN
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
// E4M3FN: no infinity, S.1111.111 = NaN, largest 448. f32 → fp8 saturates at ±448 ("FP8" of algorithms.md).
float fp8_to_f32(uint8_t q);
uint8_t f32_to_fp8(float f);
float f16_to_f32(uint16_t h);

#endif
