// The class of kernels that tests run on: OOZE_TEST_ISA (avx512bf16, avx512, avx2, ref) masks everything above it, as if the processor
// had no more. Unset: all the processor has. Only tests read it; programs have trainer.isa and --isa.
#ifndef TESTS_ISA_H
#define TESTS_ISA_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"

// What to give device_open, struct worker_config and trainer.isa.
static inline const char *test_isa(void)
{
    const char *isa = getenv("OOZE_TEST_ISA");
    return isa && *isa ? isa : "auto";
}

// The class may not be used.
static inline bool test_isa_masked(enum isa i)
{
    const char *isa = test_isa();
    if (!strcmp(isa, "auto"))
        return false;
    for (int highest = ISA_REF; highest <= ISA_AMX; highest++)
        if (!strcmp(isa, isa_name((enum isa)highest)))
            return (int)i > highest;
    abort(); // no class of that name
}

#endif
