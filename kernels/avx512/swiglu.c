// SwiGLU: lanes/swiglu_tmpl.c on AVX-512.
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

#include "kernels/lanes/swiglu_tmpl.c"
