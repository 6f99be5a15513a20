// FP8 codes as bf16, exactly: a constant of the low seven bits q, of which the classes make their tables. The sign is put back apart.
#ifndef KERNELS_AVX512BF16_FP8_BF16_H
#define KERNELS_AVX512BF16_FP8_BF16_H

#define FP8_BF16(q)                                                                                          \
    ((q) == 127 ? 0x7fc0                                                                                     \
     : (q) >= 8 ? (((q) >> 3) + 120) << 7 | ((q)&7) << 4                                                     \
     : (q) >= 4 ? 0x3c00 | ((q)-4) << 5                                                                      \
     : (q) == 3 ? 0x3bc0                                                                                     \
     : (q) == 2 ? 0x3b80                                                                                     \
     : (q) == 1 ? 0x3b00                                                                                     \
                : 0)

#endif
