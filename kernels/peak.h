// What the processor could compute if nothing had to be fetched: the bound that shares of peak (perf/mfu, `ooze bench`) refer to.
#ifndef KERNELS_PEAK_H
#define KERNELS_PEAK_H

#include "kernels/device.h"

// Floating-point operations a second (a multiply-add counts two) of a loop that touches registers only, on all threads of the
// device: DT_F32 multiply-adds of the class's width, DT_BF16 products of tiles or dot products of pairs where the class has them (else
// the same as DT_F32). The best of `repetitions`, each about a third of a millisecond long: neighbours on the machine lower a single one.
double peak_flops(struct device *d, enum dtype dtype, int repetitions);

#endif
