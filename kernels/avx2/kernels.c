// The table of the class avx2: fields left alone keep the twin of the class below.
#include "kernels/avx2/avx2.h"

void avx2_table(struct kernels *k)
{
    k->weight_pack = avx2_weight_pack;
    k->gemm = avx2_gemm;
    k->gemm_dw = avx2_gemm_dw;
    k->bias_grad = avx2_bias_grad;
    k->embed = avx2_embed;
    k->embed_grad = avx2_embed_grad;
    k->rmsnorm = avx2_rmsnorm;
    k->rmsnorm_grad = avx2_rmsnorm_grad;
    k->rope = avx2_rope;
    k->swiglu = avx2_swiglu;
    k->swiglu_grad = avx2_swiglu_grad;
    k->add = avx2_add;
    k->round_bf16 = avx2_round_bf16;
    k->kv_write = avx2_kv_write;
    k->attention = avx2_attention;
    k->attention_grad = avx2_attention_grad;
    k->logprob = avx2_logprob;
    k->logprob_grad = avx2_logprob_grad;
    k->sample = avx2_sample;
    k->probs = avx2_probs;
    k->sumsq = avx2_sumsq;
    k->adamw = avx2_adamw;
    k->fp8_quantize = avx2_fp8_quantize;
    k->fp8_dequantize = avx2_fp8_dequantize;
    k->to_bf16 = avx2_to_bf16;
    k->to_bf16_rows = avx2_to_bf16_rows;
    k->from_bf16 = avx2_from_bf16;
}
