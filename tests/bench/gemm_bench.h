// Our matrix products on the list of gemm_shapes.h: as a table beside the machine's peaks, or served to `ooze bench`.
#ifndef TESTS_BENCH_GEMM_BENCH_H
#define TESTS_BENCH_GEMM_BENCH_H

// Command line as bench_options() reads it. Returns the exit code.
int gemm_bench(int argc, char **argv);

#endif
