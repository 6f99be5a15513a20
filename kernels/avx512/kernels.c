// The table of the class avx512: fields left alone keep the twin of the class below.
#include "kernels/avx512/avx512.h"

void avx512_table(struct kernels *k)
{
    k->gemm = avx512_gemm;
    k->gemm_dw = avx512_gemm_dw;
}
