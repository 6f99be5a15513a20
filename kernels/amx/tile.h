// The tile instructions under the names that gemm.c and gemm_dw.c use. A build with AMX_TILE_HEADER takes them from that header
// instead (the tests' software model).
//
//   tile_begin()            configures this thread's eight tiles, all TILE_DIM rows of 64 bytes, zeroed
//   tile_end()              gives the tiles back: a thread between two ops has no tile state to be saved
//   TILE_ZERO(t)            tile t = 0
//   TILE_LOAD(t, p, bytes)  row r of tile t = 64 bytes at p + r * bytes
//   TILE_STORE(t, p, bytes) and back
//   TILE_DOT(c, a, b)       TDPBF16PS: c [16, 16] f32 += a [16, 16 pairs] b [16 pairs, 16] (amx.h has the order)
// t, a, b, c are constants. The process must have asked the system for tile state once (cpu.c).
#ifndef KERNELS_AMX_TILE_H
#define KERNELS_AMX_TILE_H

#ifdef AMX_TILE_HEADER
#include AMX_TILE_HEADER
#elif defined(__AMX_BF16__)

#include <immintrin.h>
#include <stdint.h>

// What LDTILECFG reads: palette 1 has eight tiles of at most 16 rows of 64 bytes.
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static inline void tile_begin(void)
{
    static const struct tile_config c = {.palette = 1,
                                         .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                         .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&c);
}
static inline void tile_end(void)
{
    _tile_release();
}
// The compiler's tile loads do not say that they read memory: what was written before must be there.
#define TILE_MEMORY()     __asm__ volatile("" ::: "memory")
#define TILE_ZERO(t)      _tile_zero(t)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_LOAD(t, p, bytes)                                                                               \
    do {                                                                                                     \
        TILE_MEMORY();                                                                                       \
        _tile_loadd(t, p, bytes);                                                                            \
    } while (0)
#define TILE_STORE(t, p, bytes)                                                                              \
    do {                                                                                                     \
        _tile_stored(t, p, bytes);                                                                           \
        TILE_MEMORY();                                                                                       \
    } while (0)

#endif
#endif
