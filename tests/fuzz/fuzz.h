// The one entry of a fuzz target; libFuzzer's name. With OOZE_FUZZ (clang) libFuzzer drives it, else replay.c does.
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

// Returns 0; a finding is a crash, a sanitizer's report or an abort().
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#endif
