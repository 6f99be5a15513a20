// SwiGLU: avx512's, where the instruction that rounds to bf16 takes the place of ten. What it writes is a model's widest rows.
#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/lanes.h"

#undef LANES
#define LANES(name) avx512bf16_##name
#include "kernels/lanes/swiglu_tmpl.c"
