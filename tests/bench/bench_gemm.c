// Products beside the machine's peak: tests/kernels/gemm_bench.h. Usage: bench_gemm [isa] [threads]
#include <stdlib.h>

#include "tests/kernels/gemm_bench.h"

int main(int argc, char **argv)
{
    return gemm_bench(argc > 1 ? argv[1] : "auto", argc > 2 ? atoi(argv[2]) : 0);
}
