// What the machine can do, measured: the bounds that benchmarks stand beside. Arithmetic peaks come from loops that touch
// registers only, bandwidths from passes over memory, always on all threads of the device's pool and as the best of short
// repetitions, so that a neighbour on the machine lowers them as little as possible.
#ifndef TESTS_BENCH_PEAKS_H
#define TESTS_BENCH_PEAKS_H

#include <stddef.h>

#include "kernels/kernels.h"

// Floating-point operations a second (a multiply-add counts two) of packed f32 multiply-adds in the registers of the
// device's class: 256 bits for avx2, 512 from avx512 on.
double peak_fma(struct device *d);
// The same for the class's fastest product of bf16: the dot product of pairs on avx512bf16, of tiles of them on amx; classes without one
// widen to f32, their bound is peak_fma.
double peak_bf16(struct device *d);

// Bytes read a second in passes over [p, p + bytes), every thread its share in long runs with the widest loads there are: the
// best pass out of several ways (1, 2, 4 or 8 streams a thread, with and without prefetches). p is 64-byte aligned and
// was written to before (untouched pages of the system are all one page). Passes go on for about `seconds`.
double peak_read(struct device *d, const void *p, size_t bytes, double seconds);
// One such pass, the way given: seconds. For bounds that stand beside something timed in turns with them.
#define PEAK_READ_WAYS 8
double peak_read_pass(struct device *d, const void *p, size_t bytes, int way);
// Bytes copied a second by memcpy on all threads, each with its share: a byte that is read and written counts once.
double peak_copy(struct device *d, void *to, const void *from, size_t bytes, double seconds);

#endif
