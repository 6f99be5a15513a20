// Rotary tables (Su et al. 2021), with the frequency scaling of Llama 3 (Meta 2024): angle = position * frequency_i,
// frequency_i = theta^(-2i/D), in double and rounded once. Runs on the thread that opens the weights; no state.
#include "model/rope.h"

#include "kernels/fmath.h"

#define PI 3.14159265358979323846

// Wavelengths up to original/high_freq_factor stay; those from original/low_freq_factor on are stretched by `factor`; in between the
// frequency is interpolated linearly in original/wavelength.
static double frequency_scale(const struct model_config *c, double f)
{
    double factor = c->rope_scaling.factor;
    if (factor == 1)
        return f;
    double low = c->rope_scaling.low_freq_factor, high = c->rope_scaling.high_freq_factor;
    double turns = (double)c->rope_scaling.original_max_position * f / (2 * PI); // original / wavelength
    if (turns < low)
        return f / factor;
    if (turns > high)
        return f;
    double smooth = (turns - low) / (high - low);
    return (1 - smooth) * f / factor + smooth * f;
}

size_t rope_bytes(const struct model_config *c)
{
    return (size_t)c->max_position * (size_t)c->head_dim * sizeof(float); // cos and sin, half a head each
}

enum status rope_open(struct device *d, const struct model_config *c, struct rope *ret, struct error *err)
{
    int64_t half = c->head_dim / 2;
    struct rope r;
    r.cos = device_alloc(d, rope_bytes(c) / 2);
    r.sin = device_alloc(d, rope_bytes(c) / 2);
    if (!r.cos || !r.sin) {
        rope_close(d, &r);
        return error_set(err, STATUS_NOMEM, "no memory for the rotary table of %lld positions",
                         (long long)c->max_position);
    }
    for (int64_t i = 0; i < half; i++) {
        double f = frequency_scale(c, fmath_pow(c->rope_theta, 2 * (double)i / (double)c->head_dim));
        for (int64_t p = 0; p < c->max_position; p++)
            fmath_sincos((double)p * f, &r.sin[p * half + i], &r.cos[p * half + i]);
    }
    *ret = r;
    return STATUS_OK;
}

void rope_close(struct device *d, struct rope *r)
{
    device_free(d, r->cos);
    device_free(d, r->sin);
    *r = (struct rope){0};
}
