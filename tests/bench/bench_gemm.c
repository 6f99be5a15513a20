// Matrix products of the model's shapes in GFLOP/s; `ooze bench gemm` sets them beside bench_dnnl's.
// Usage: bench_gemm [--isa CLASS] [--threads N] [--type f32|bf16|fp8] [--serve]
#include "tests/bench/gemm_bench.h"

int main(int argc, char **argv)
{
    return gemm_bench(argc, argv);
}
