// proto/codec.h: what breaks an invariant of msg.h is refused on both sides.
#include "codec_random.h"

// The sender's check refuses it, and so does the receiver's when the frames are made to say it.
#define REFUSED(type, break_it)                                                                              \
    do {                                                                                                     \
        struct msg m;                                                                                        \
        struct codec_frame frames[CODEC_FRAMES];                                                             \
        int n;                                                                                               \
        do {                                                                                                 \
            random_msg(type, &m);                                                                            \
        } while (type == MSG_TOKEN_DATA && (m.tokens.n < 4 || m.tokens.n_kv < 1));                           \
        break_it;                                                                                            \
        arena_reset(&coded);                                                                                 \
        memset(&err, 0, sizeof(err));                                                                        \
        if (codec_encode(&m, &coded, frames, &n, &err) != STATUS_INVALID)                                    \
            fail_msg("sent in spite of: %s", #break_it);                                                     \
        assert_int_equal(err.status, STATUS_INVALID);                                                        \
        assert_non_null(strstr(err.text, msg_type_name(type)));                                              \
    } while (0)

static void test_sender_is_checked(void **state)
{
    (void)state;
    char longest[MSG_STRING + 2];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = 0;
    REFUSED(MSG_HELLO, m.hello.role = 4);
    REFUSED(MSG_HELLO, m.hello.version = -2);
    REFUSED(MSG_HELLO, m.hello.version = -1); // with a hash
    REFUSED(MSG_HELLO, (m.hello.role = ROLE_TRAINER, m.hello.remote = true));
    REFUSED(MSG_HELLO, m.hello.name = longest);
    REFUSED(MSG_HELLO, m.hello.name = "\xff");
    REFUSED(MSG_HELLO, m.hello.name = "\xc0\x80");
    REFUSED(MSG_HELLO, m.hello.name = "\xed\xa0\x80");
    REFUSED(MSG_HELLO, m.hello.name = "\xe2\x82");
    REFUSED(MSG_WELCOME, m.welcome.committed_steps = 4);
    REFUSED(MSG_PING, m.ping.busy = NAN);
    REFUSED(MSG_PONG, m.ping.kv_used = -1);
    REFUSED(MSG_JOB, m.job.n_ids = 0);
    REFUSED(MSG_JOB, m.job.n_ids = MSG_TOKENS_MAX);
    REFUSED(MSG_JOB, ((int32_t *)m.job.ids)[0] = -1);
    REFUSED(MSG_JOB, m.job.ids = NULL);
    REFUSED(MSG_JOB, (m.job.sampling.train = true, m.job.sampling.temperature = 0));
    REFUSED(MSG_JOB, (m.job.sampling.train = true, m.job.sampling.top_p = 0.5f));
    REFUSED(MSG_JOB, m.job.sampling.temperature = INFINITY);
    REFUSED(MSG_JOB, m.job.sampling.n_stop = MSG_STOP_IDS + 1);
    REFUSED(MSG_JOB, (m.job.sampling.max_new = 0, m.job.sampling.min_new = 0, m.job.prompt_logprobs = false));
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = 0.01f);
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = NAN);
    REFUSED(MSG_TOKEN_DATA, ((float *)m.tokens.logprobs)[1] = -INFINITY);
    REFUSED(MSG_TOKEN_DATA, ((int32_t *)m.tokens.ids)[3] = -5);
    REFUSED(MSG_TOKEN_DATA, m.tokens.offset = MSG_TOKENS_MAX);
    REFUSED(MSG_TOKEN_DATA, m.tokens.n_spans = 0);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].end = m.tokens.offset + m.tokens.n + 1);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].start++);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_span *)m.tokens.spans)[0].version = -1);
    REFUSED(MSG_TOKEN_DATA, ((struct msg_kv *)m.tokens.kv)[0].kind = 6);
    REFUSED(MSG_TOKEN_DATA, m.tokens.finish = 9);
    REFUSED(MSG_ACK, m.ack.durable_to = -1);
    REFUSED(MSG_PREPARE, m.prepare.n_tokens++);
    REFUSED(MSG_PREPARE, m.prepare.n_members = 0);
    REFUSED(MSG_PREPARE, ((struct msg_member *)m.prepare.members)[0].multiplicity = 0);
    REFUSED(MSG_PREPARE, ((struct msg_member *)m.prepare.members)[0].advantage = NAN);
    REFUSED(MSG_PREPARE, ((uint8_t *)m.prepare.mask)[0] = 2);
    // the token says it was not sampled, and its array the opposite
    REFUSED(MSG_PREPARE, (((uint8_t *)m.prepare.mask)[0] = 0, ((float *)m.prepare.logprobs)[0] = -1));
    REFUSED(MSG_PREPARE, {
        int64_t k = m.prepare.n_tokens - 1; // a sampled token of weights that are not there yet
        ((uint8_t *)m.prepare.mask)[k] = 1;
        ((float *)m.prepare.logprobs)[k] = -1;
        ((int32_t *)m.prepare.versions)[k] = (int32_t)m.prepare.step + 1;
    });
    REFUSED(MSG_JOB, m.job.sampling.max_new = INT32_MIN);
    REFUSED(MSG_TOKEN_DATA, m.tokens.offset = INT32_MAX);
    REFUSED(MSG_PREPARE, ((float *)m.prepare.temperatures)[0] = 0);
    REFUSED(MSG_PREPARE, m.prepare.updates = 0);
    REFUSED(MSG_PREPARE, m.prepare.lr = -1);
    REFUSED(MSG_STEP_DONE, m.step_done.outcome = 0);
    REFUSED(MSG_STEP_DONE, m.step_done.n_metrics = MSG_METRICS + 1);
    REFUSED(MSG_COMMIT_ACK, m.commit_ack.result = 4);
    REFUSED(MSG_CHECKPOINT, m.checkpoint.step = -1);
    REFUSED(MSG_LOADED, m.loaded.stall_ms = -1);
    REFUSED(MSG_CHUNK_REQUEST, m.chunk_request.bytes = MSG_CHUNK + 1);
    REFUSED(MSG_CHUNK_DATA, m.chunk_data.total = m.chunk_data.offset + m.chunk_data.n - 1);
    REFUSED(MSG_QUERY, m.query.verb = "");
    REFUSED(MSG_REPLY, m.reply.status = 1);
}

static void test_parity_sender_is_checked(void **state)
{
    (void)state;
    static const struct msg_weights twice[] = {{4, "a", "b"}, {4, "a", "b"}};
    REFUSED(MSG_CHECK, m.check.n_tokens++);
    REFUSED(MSG_CHECK, m.check.n_segments = 0);
    REFUSED(MSG_CHECK, ((struct msg_check_segment *)m.check.segments)[0].n_kv++);
    REFUSED(MSG_CHECK, ((struct msg_check_segment *)m.check.segments)[0].n_tokens = 0);
    REFUSED(MSG_CHECK, (m.check.weights = twice, m.check.n_weights = 2));
    REFUSED(MSG_CHECK, ((int32_t *)m.check.ids)[0] = -1);
    REFUSED(MSG_CHECK, ((uint8_t *)m.check.mask)[0] = 2);
    REFUSED(MSG_CHECK, ((uint8_t *)m.check.mask)[0] ^= 1);
    REFUSED(MSG_CHECK, ((float *)m.check.logprobs)[0] = NAN);
    REFUSED(MSG_CHECK, ((float *)m.check.temperatures)[0] = -1);
    REFUSED(MSG_CHECK, m.check.n_kv = MSG_CHECK_KV + 1);
    REFUSED(MSG_CHECK_DONE, m.check_done.max_abs_diff = NAN);
    REFUSED(MSG_CHECK_DONE, m.check_done.crossing = m.check_done.compared + 1);
    REFUSED(MSG_CHECK_DONE, m.check_done.differs = false);
    REFUSED(MSG_CHECK_DONE, m.check_done.error = "\xff");
    REFUSED(MSG_TRACE, m.trace.n_ids = 1);
    REFUSED(MSG_TRACE, m.trace.n_ids = MSG_TRACE_IDS + 1);
    REFUSED(MSG_TRACE, ((int32_t *)m.trace.ids)[1] = -1);
    REFUSED(MSG_TRACE, m.trace.version = -1);
    REFUSED(MSG_TRACE_DONE, m.trace_done.ok = false); // with a trace
    REFUSED(MSG_TRACE_DONE, m.trace_done.n_logprobs = MSG_TRACE_IDS + 1);
    REFUSED(MSG_TRACE_DONE, ((struct msg_trace_op *)m.trace_done.ops)[0].layer = -2);
}

// What an honest sender would never put on the wire: arrays whose contents were changed after the check.
static void expect_refused(struct msg *m, int frame, size_t at, const void *bytes, size_t n_bytes)
{
    struct msg back;
    struct codec_frame frames[CODEC_FRAMES], copy[CODEC_FRAMES];
    char *blocks[CODEC_FRAMES];
    int n = copy_frames(frames, encode(m, frames), 0, copy, blocks);
    assert_int_equal(decode(copy, n, &back), STATUS_OK);
    memcpy(blocks[frame] + at, bytes, n_bytes);
    assert_int_equal(decode(copy, n, &back), STATUS_PROTOCOL);
    free_frames(blocks, n);
}

static void test_receiver_is_checked(void **state)
{
    (void)state;
    struct msg m;
    const int32_t negative = -1;
    const float high = 0.5f, nan = NAN;
    do {
        random_msg(MSG_TOKEN_DATA, &m);
    } while (m.tokens.n < 4 || m.tokens.n_prompt_logprobs < 1);
    expect_refused(&m, 1, 4, &negative, 4);
    expect_refused(&m, 2, 0, &high, 4);
    expect_refused(&m, 2, 8, &nan, 4);
    expect_refused(&m, 3, 0, &nan, 4);
    random_msg(MSG_JOB, &m);
    expect_refused(&m, 1, 0, &negative, 4);
    random_msg(MSG_PREPARE, &m);
    expect_refused(&m, 1, 0, &negative, 4);
    expect_refused(&m, 2, 0, "\2", 1);
    expect_refused(&m, 3, 0, &nan, 4);
    expect_refused(&m, 5, 0, &nan, 4);
    struct codec_frame frames[CODEC_FRAMES];
    struct msg back;
    random_msg(MSG_JOB, &m);
    int n = encode(&m, frames);
    uint8_t *envelope = (uint8_t *)frames[0].data;
    // protocol, one array: its length, kind, element, and then the count of ids
    static const uint8_t announced[] = {0x08, 1, 0x10, 2, 0x18};
    assert_memory_equal(envelope + 4, announced, sizeof(announced));
    envelope[4 + sizeof(announced)] ^= 1;
    assert_int_equal(decode(frames, n, &back), STATUS_PROTOCOL);
    assert_non_null(strstr(err.text, "not as announced"));
    random_msg(MSG_CANCEL, &m);
    n = encode(&m, frames);
    envelope = (uint8_t *)frames[0].data;
    assert_int_equal(envelope[0], 0x08); // field 1, the protocol version
    assert_int_equal(envelope[1], MSG_PROTOCOL);
    envelope[1] = MSG_PROTOCOL + 1;
    assert_int_equal(decode(frames, n, &back), STATUS_PROTOCOL);
    assert_non_null(strstr(err.text, "protocol version 2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sender_is_checked),
        cmocka_unit_test(test_parity_sender_is_checked),
        cmocka_unit_test(test_receiver_is_checked),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
