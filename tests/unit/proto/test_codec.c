// proto/codec.h: every message there and back with random content; nothing crashes on damaged frames. (test_refusals.c: what breaks an
// invariant of msg.h.)
#include "codec_compare.h"

static void test_round_trip(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++)
        for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
            struct msg m, back;
            struct codec_frame frames[CODEC_FRAMES];
            arena_reset(&made);
            random_msg((enum msg_type)type, &m);
            int n = encode(&m, frames);
            memset(&back, 0x5a, sizeof(back));
            if (decode(frames, n, &back) != STATUS_OK)
                fail_msg("%s: %s", msg_type_name(m.type), err.text);
            assert_equal(m, back);
        }
}

static void test_empty_texts(void **state)
{
    (void)state;
    struct msg m = {.type = MSG_HELLO, .hello = {.role = ROLE_CLI, .version = -1}}, back; // every text NULL
    struct codec_frame frames[CODEC_FRAMES];
    assert_int_equal(decode(frames, encode(&m, frames), &back), STATUS_OK);
    assert_string_equal(back.hello.run, "");
    assert_string_equal(back.hello.version_hash, "");
    assert_int_equal(back.hello.version, -1);
}

static void test_misaligned(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES], odd[CODEC_FRAMES];
        char *blocks[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = copy_frames(frames, encode(&m, frames), 1, odd, blocks);
        assert_int_equal(decode(odd, n, &back), STATUS_OK);
        assert_equal(m, back);
        free_frames(blocks, n);
    }
}

static void test_truncation(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = encode(&m, frames);
        for (int f = 0; f < n; f++)
            for (size_t cut = 0; cut < frames[f].n; cut++) {
                struct codec_frame cutted[CODEC_FRAMES];
                memcpy(cutted, frames, sizeof(cutted[0]) * (size_t)n);
                char *exact = malloc(cut + 1);
                memcpy(exact, frames[f].data, cut);
                cutted[f] = (struct codec_frame){exact, cut};
                enum status rc = decode(cutted, n, &back);
                if (f >
                    0) // an array never parses when its frame is short; an envelope may, by luck, at a field's end
                    assert_int_equal(rc, STATUS_PROTOCOL);
                free(exact);
            }
        for (int fewer = 0; fewer < n; fewer++)
            assert_int_not_equal(decode(frames, fewer, &back), STATUS_OK);
        frames[n] = frames[0];
        assert_int_equal(decode(frames, n + 1, &back), STATUS_PROTOCOL);
    }
}

static void test_flips(void **state)
{
    (void)state;
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        struct msg m, back;
        struct codec_frame frames[CODEC_FRAMES], copy[CODEC_FRAMES];
        char *blocks[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = copy_frames(frames, encode(&m, frames), 0, copy, blocks);
        for (size_t i = 0; i < frames[0].n; i++)
            for (int bit = 0; bit < 8; bit++) {
                blocks[0][i] ^= (char)(1 << bit);
                (void)!decode(copy, n, &back);
                blocks[0][i] ^= (char)(1 << bit);
            }
        for (int k = 0; k < 2000; k++) { // several at once, in any frame
            char old[4], *at[4];
            for (int j = 0; j < 4; j++) {
                int f = (int)below(n);
                at[j] = blocks[f] + below((int64_t)frames[f].n + 1);
                old[j] = *at[j];
                *at[j] = (char)rng_u32(&rng);
            }
            (void)!decode(copy, n, &back);
            for (int j = 3; j >= 0; j--)
                *at[j] = old[j];
        }
        assert_int_equal(decode(copy, n, &back), STATUS_OK);
        free_frames(blocks, n);
    }
}

static void test_noise(void **state)
{
    (void)state;
    uint8_t noise[64];
    for (int k = 0; k < 20000; k++) {
        size_t n = (size_t)below(sizeof(noise));
        struct msg back;
        for (size_t i = 0; i < n; i++)
            noise[i] = (uint8_t)rng_u32(&rng);
        assert_int_not_equal(decode(&(struct codec_frame){noise, n}, 1, &back), STATUS_OK);
    }
}

static void test_trace_compare(void **state)
{
    (void)state;
    const struct msg_trace_op ops[] = {{-1, 0, "embedding", "embed"},
                                       {0, 0, "mlp", "gemm"},
                                       {0, 1, "mlp", "gemm"},
                                       {1, 0, "head", "rmsnorm"}};
    const struct msg_trace_op more[] = {{-1, 0, "embedding", "embed"},
                                        {0, 0, "mlp", "round_bf16"},
                                        {0, 0, "mlp", "gemm"},
                                        {0, 1, "mlp", "gemm"},
                                        {1, 0, "head", "rmsnorm"}};
    const uint64_t same[] = {1, 2, 3, 4}, other[] = {1, 2, 30, 40}, same_more[] = {1, 99, 2, 3, 4};
    struct msg_trace_done a = {.ok = true, .n_ops = 4, .ops = ops, .digests = same}, b = a,
                          c = {.ok = true, .n_ops = 5, .ops = more, .digests = same_more};
    assert_int_equal(msg_trace_compare(&a, &b), -1);
    assert_int_equal(msg_trace_compare(&a, &c), -1); // what only one has is passed over
    assert_int_equal(msg_trace_compare(&c, &a), -1);
    b.digests = other;
    assert_int_equal(msg_trace_compare(&a, &b), 2);
    assert_int_equal(msg_trace_compare(&c, &b), 3);
}

// An envelope that announces much in few bytes is stopped by the arena's limit.
static void test_memory_limit(void **state)
{
    (void)state;
    size_t n = 4u << 20;
    uint8_t *bytes = malloc(n);
    struct arena small;
    struct msg back;
    assert_non_null(bytes);
    for (size_t i = 0; i + 1 < n; i += 2) { // field 2 (arrays), length 0, over and over
        bytes[i] = 0x12;
        bytes[i + 1] = 0;
    }
    arena_init(&small, 1 << 20);
    assert_int_not_equal(codec_decode(&(struct codec_frame){bytes, n}, 1, &small, &back, &err), STATUS_OK);
    assert_true(small.used <= 1 << 20);
    arena_done(&small);
    free(bytes);
}

// One message of each type for tests/fuzz/corpus/codec, in the form fuzz_codec.c reads.
static int write_corpus(const char *folder)
{
    setup(NULL);
    for (int type = MSG_HELLO; type <= MSG_LAST; type++) {
        char path[1024];
        struct msg m;
        struct buf b = {0};
        struct codec_frame frames[CODEC_FRAMES];
        random_msg((enum msg_type)type, &m);
        int n = encode(&m, frames);
        for (int i = 0; i < n; i++) {
            uint32_t length = (uint32_t)frames[i].n;
            buf_append(&b, &length, sizeof(length));
            buf_append(&b, frames[i].data, frames[i].n);
        }
        snprintf(path, sizeof(path), "%s/%s", folder, msg_type_name(m.type));
        if (file_write_atomic(path, b.data, b.len, 0644, &err) != STATUS_OK)
            return 1;
        buf_done(&b);
    }
    return teardown(NULL);
}

int main(void)
{
    if (getenv("OOZE_WRITE_CORPUS"))
        return write_corpus(getenv("OOZE_WRITE_CORPUS"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_empty_texts),
        cmocka_unit_test(test_misaligned),    cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_flips),         cmocka_unit_test(test_noise),
        cmocka_unit_test(test_trace_compare), cmocka_unit_test(test_memory_limit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
