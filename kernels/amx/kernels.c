// The table of the class amx: fields left alone keep the twin of the class below. What reads packed weights must be here: the class
// packs them its own way.
#include "kernels/amx/amx.h"

void AMX(table)(struct kernels *k)
{
    k->weight_bytes = AMX(weight_bytes);
    k->weight_pack = AMX(weight_pack);
    k->gemm = AMX(gemm);
    k->gemm_dw = AMX(gemm_dw);
}
