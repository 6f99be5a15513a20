// SwiGLU: lanes/swiglu_tmpl.c on AVX2.
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

#include "kernels/lanes/swiglu_tmpl.c"
