// One class of kernels: can it run here? kernels_class CLASS exits 0 when it can, 77 (a counted skip) when this processor or build
// lacks it; tests/run.sh asks before it masks. Without CLASS: the classes below the best one can all be had, and the ones above
// it are refused with a reason.
#include <pthread.h>

#include "kernels/cpu.h"
#include "kernels/peak.h"
#include "tests/kernels/check.h"

static void test_chain(void **state)
{
    (void)state;
    for (int i = ISA_REF; i <= ISA_AMX; i++) {
        struct device *d = NULL;
        struct error err;
        enum status s = device_open("cpu", isa_name((enum isa)i), 4, &d, &err);
        if (cpu_built((enum isa)i) && cpu_has((enum isa)i)) {
            assert_int_equal(s, STATUS_OK);
            assert_int_equal(d->isa, i);
        } else {
            assert_int_equal(s, STATUS_UNSUPPORTED);
            assert_non_null(strstr(err.text, isa_name((enum isa)i)));
            assert_true(i > (int)device_best_isa());
        }
        device_close(d);
    }
}

// One product of ones on the calling thread.
static float product(struct device *d)
{
    enum { M = 16, N = 32, K = 32 };
    static const uint16_t one = 0x3f80;
    uint16_t x[M * K], w[N * K];
    float y[M * N], sum = 0;
    for (int i = 0; i < M * K; i++)
        x[i] = one;
    for (int i = 0; i < N * K; i++)
        w[i] = one;
    struct gemm_weight g = {DT_BF16, N, K, device_alloc(d, d->k->weight_bytes(DT_BF16, N, K)), NULL};
    d->k->weight_pack(d, DT_BF16, N, K, w, DT_BF16, false, g.data);
    d->k->gemm(d, &g, M, rows_bf16(x, K), NULL, false, y, N);
    device_free(d, g.data);
    for (int i = 0; i < M * N; i++)
        sum += y[i];
    return sum / (M * N * K);
}

struct asked {
    struct device *d;
    bool has;
    float product;
};

static void *ask(void *arg)
{
    struct asked *a = arg;
    pool_thread_init();
    a->has = cpu_has(ISA_AMX);
    a->product = product(a->d);
    return NULL;
}

// Tiles are asked for once by the process: a thread that never asked may use them, and asking again changes nothing.
static void test_permission(void **state)
{
    (void)state;
    if (!cpu_has(ISA_AMX)) {
        print_message("skipped: no AMX here\n");
        skip();
    }
    pthread_t thread;
    struct asked a = {.d = check_open("amx", 1)};
    assert_true(product(a.d) == 1);
    assert_int_equal(pthread_create(&thread, NULL, ask, &a), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(a.has && a.product == 1);
    assert_true(product(a.d) == 1);
    device_close(a.d);
}

static void check_peak(struct device *d)
{
    for (int t = DT_F32; t <= DT_BF16; t++) {
        double peak = peak_flops(d, (enum dtype)t, 3);
        if (!(peak > 0 && isfinite(peak)))
            fail_msg("%s: a peak of %g operations a second", d->name, peak);
    }
}

// Peaks of every class there is, and of the class amx over the model of its instructions, which has no tiles of the processor's. In the
// model the operations are counted: a round's products of ones add up to half of them.
static void test_peak(void **state)
{
    (void)state;
    struct kernels table;
    struct device *model = check_open_model(&table, 2);
    for (int i = ISA_REF; i <= (int)device_best_isa(); i++) {
        struct device *d = check_open(isa_name((enum isa)i), 2);
        check_peak(d);
        device_close(d);
    }
    if (!model)
        return;
    check_peak(model);
#ifdef AMX_TILE_HEADER
    for (int64_t n = 1; n <= 3; n++)
        assert_true((double)AMX(peak)(n) == (double)n * AMX_PEAK_FLOPS / 2);
#endif
    device_close(model);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        struct device *d;
        struct error err;
        if (device_open("cpu", argv[1], 4, &d, &err)) {
            printf("%s\n", err.text);
            return err.status == STATUS_UNSUPPORTED ? 77 : 1;
        }
        printf("%s, %s\n", d->name, d->numerics_id);
        device_close(d);
        return 0;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chain), cmocka_unit_test(test_permission),
                                       cmocka_unit_test(test_peak)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
