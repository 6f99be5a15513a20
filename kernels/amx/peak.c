// The peak of the tile products (kernels/peak.h): registers only, four accumulators hide the latency. Like the rest of the class it never
// yet ran on a processor that has the instructions; the tests run it over their software model of them.
#include "kernels/amx/amx.h"
#include "kernels/amx/tile.h"

float AMX(peak)(int64_t n)
{
    static const uint16_t ones[TILE_DIM * TILE_K] = {[0 ... TILE_DIM * TILE_K - 1] = 0x3f80};
    float c[4][TILE_DIM * TILE_DIM], sum = 0;
    tile_begin();
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    TILE_LOAD(4, ones, 64);
    TILE_LOAD(5, ones, 64);
    TILE_LOAD(6, ones, 64);
    TILE_LOAD(7, ones, 64);
    for (int64_t i = 0; i < n; i++) {
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, c[0], 64);
    TILE_STORE(1, c[1], 64);
    TILE_STORE(2, c[2], 64);
    TILE_STORE(3, c[3], 64);
    tile_end();
    for (int i = 0; i < 4 * TILE_DIM * TILE_DIM; i++)
        sum += c[i / (TILE_DIM * TILE_DIM)][i % (TILE_DIM * TILE_DIM)];
    return sum;
}
