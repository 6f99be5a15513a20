// An engine of the loop's tests: random letters, in two messages a job.
#ifndef TESTS_FAKE_ENGINE_H
#define TESTS_FAKE_ENGINE_H

#include "base/rng.h"
#include "fake_peer.h"

static void answer_job(struct wire *w, const struct msg_job *j, int64_t version, bool die_half_way)
{
    int32_t ids[8];
    float logprobs[8];
    struct rng_token_key key = {j->run_seed, j->trajectory, j->attempt, j->segment};
    int32_t n = 0, eos = faults == OTHER_STOP ? OTHER_EOS : EOS;
    REQUIRE(j->min_version <= version && j->n_ids > 0);
    for (; n < 4 && n < j->sampling.max_new; n++) {
        float u = rng_token_uniform(&key, (uint32_t)(j->n_ids + n));
        bool stop = n == 3 || (n > 0 && u < 0.2f);
        ids[n] = stop ? eos : 'a' + (int32_t)(u * 20);
        logprobs[n] = -1.0f - u;
        if (stop) {
            n++;
            break;
        }
    }
    int32_t half = n / 2;
    struct msg_span first = {version, 0, half}, second = {version, half, n};
    // One event a turn: the check must bring them all back.
    const struct msg_kv kv = {KV_REFIT, j->n_ids + half, 0, j->n_ids + half, version};
    struct msg m = {.type = MSG_TOKEN_DATA};
    if (half > 0) {
        m.tokens = (struct msg_tokens){.job = j->job,
                                       .offset = 0,
                                       .n = half,
                                       .ids = ids,
                                       .logprobs = logprobs,
                                       .n_spans = 1,
                                       .spans = &first,
                                       .error = ""};
        say(w, &m);
    }
    if (die_half_way) {
        wire_close(w); // what was said arrives
        _exit(7);
    }
    m.tokens = (struct msg_tokens){.job = j->job,
                                   .offset = half,
                                   .n = n - half,
                                   .ids = ids + half,
                                   .logprobs = logprobs + half,
                                   .n_spans = 1,
                                   .spans = &second,
                                   .n_kv = 1,
                                   .kv = &kv,
                                   .finish = ids[n - 1] == eos ? FINISH_STOP : FINISH_LENGTH,
                                   .error = ""};
    say(w, &m);
}

static int engine_main(const char *name, int restarts)
{
    struct msg_hello h;
    struct wire *w = join(name, &h, restarts);
    bool welcomed = false;
    int64_t heard = 0, said = 0;
    static char hash[HASH_HEX];
    int n_jobs = 0;
    h.role = ROLE_ENGINE;
    if (faults == OTHER_ISA && strcmp(name, "engine-1") == 0)
        h.numerics_id = "another fake";
    h.kv_tokens = 10000;
    h.max_running = 8;
    for (;;) {
        struct msg m;
        if (!next(w, &h, &welcomed, &heard, &said, &m))
            continue;
        int64_t version = m.type == MSG_VERSION   ? m.version.version
                          : m.type == MSG_WELCOME ? m.welcome.version
                                                  : -1;
        const char *path = m.type == MSG_VERSION   ? m.version.path
                           : m.type == MSG_WELCOME ? m.welcome.version_path
                                                   : "";
        if (version > h.version) {
            char *data;
            size_t n;
            struct error err;
            REQUIRE(file_read(path, 4096, &data, &n, &err) == STATUS_OK);
            snprintf(hash, sizeof hash, "%.64s", data);
            REQUIRE(strcmp(hash, m.type == MSG_VERSION ? m.version.hash : m.welcome.version_hash) == 0);
            free(data);
            h.version = version;
            h.version_hash = hash;
            struct msg loaded = {.type = MSG_LOADED,
                                 .loaded = {.version = version, .hash = hash, .ok = true, .error = ""}};
            say(w, &loaded);
        }
        if (m.type == MSG_TRACE) {
            bool odd = (faults == ODD_ENGINE && strcmp(name, "engine-0") == 0) ||
                       (faults == DRIFT && strcmp(name, "engine-1") == 0 && m.trace.n_ids < 64) ||
                       (faults == OTHER_ISA && strcmp(name, "engine-1") == 0);
            REQUIRE(m.trace.epoch == 0 && !m.trace.path[0]);
            answer_trace(w, &m.trace, false, hash, m.trace.version == h.version ? "" : "other weights by now",
                         odd ? 1 : 3);
        }
        if (m.type == MSG_JOB)
            answer_job(w, &m.job, h.version,
                       ++n_jobs == 25 && faults == LOSSES && restarts == 0 && strcmp(name, "engine-0") == 0);
        wire_release(w);
    }
}

#endif
