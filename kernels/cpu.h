// What this processor and its operating system can run. Private to kernels/.
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H

#include <stdbool.h>

#include "kernels/device.h"

// CPUID says the instructions exist and XCR0 that the system saves their registers; for ISA_AMX the system has
// also given this process its tiles.
bool cpu_has(enum isa i);
// The kernels of this class were compiled in.
bool cpu_built(enum isa i);

#endif
