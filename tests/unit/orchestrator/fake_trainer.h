// A trainer of the loop's tests. Its weights are a hash chained over everything that a step carries: a step that is not the same bytes
// the second time has another hash and stops the run. What a check brings must be what the step brought.
#ifndef TESTS_FAKE_TRAINER_H
#define TESTS_FAKE_TRAINER_H

#include <math.h>
#include <signal.h>

#include "base/buf.h"
#include "fake_peer.h"

struct chain {
    int64_t step;
    char hash[HASH_HEX];
};

struct seen { // a member of a step
    int64_t step;
    uint64_t trajectory;
    uint32_t attempt;
    uint64_t hash;
};

struct fake_trainer {
    struct wire *wire;
    struct msg_hello hello;
    int restarts;
    int64_t epoch;
    struct chain chain;
    bool done_valid, checkpoint;
    char path[400], text[HASH_HEX]; // of the weights published last; of `hello`
    struct seen seen[4096];
    int n_seen;
};

static void chain_file(const char *folder, const struct chain *c, char *ret, size_t n)
{
    struct error err;
    snprintf(ret, n, "%s/%s/%lld", dir, folder, (long long)c->step);
    REQUIRE(file_write_atomic(ret, c->hash, 64, 0600, &err) == STATUS_OK);
}

static void chain_step(struct chain *c, const struct msg_prepare *p)
{
    struct buf b = {0};
    bool rl = p->stage == 1;
    int64_t at = 0;
    REQUIRE(p->step == c->step && p->n_members > 0 && p->n_tokens > 0 &&
            p->stage_first == (p->stage_step == 0));
    for (int32_t i = 0; i < p->n_members; i++) {
        const struct msg_member *m = &p->members[i];
        int32_t trained = 0;
        for (int64_t k = at; k < at + m->n_tokens; k++) {
            trained += p->mask[k];
            REQUIRE(!p->mask[k] || !rl ||
                    (p->versions[k] <= p->step && p->step - p->versions[k] <= MAX_LAG && p->logprobs[k] < 0));
            REQUIRE(p->mask[k] || (p->logprobs[k] == 0 && p->versions[k] == -1));
        }
        REQUIRE(trained > 0 && !p->mask[at] && m->multiplicity >= 1);
        at += m->n_tokens;
        buf_append(&b, &m->advantage, sizeof m->advantage);
        buf_append(&b, &m->multiplicity, sizeof m->multiplicity);
    }
    REQUIRE(at == p->n_tokens);
    buf_append(&b, c->hash, 64);
    buf_append(&b, p->ids, (size_t)p->n_tokens * 4);
    buf_append(&b, p->mask, (size_t)p->n_tokens);
    buf_append(&b, p->versions, (size_t)p->n_tokens * 4);
    buf_append(&b, &p->lr, sizeof p->lr);
    buf_append(&b, &p->packing_seed, sizeof p->packing_seed);
    hash_sha256_hex(b.data, b.len, c->hash);
    c->step++;
    buf_done(&b);
}

static void step_done(struct fake_trainer *t)
{
    struct msg_metric metric = {"train/loss", 1.0};
    struct msg m = {.type = MSG_STEP_DONE,
                    .step_done = {.epoch = t->epoch,
                                  .step = t->chain.step - 1,
                                  .outcome = STEP_APPLIED,
                                  .reason = "",
                                  .version = t->chain.step,
                                  .hash = t->chain.hash,
                                  .path = t->path,
                                  .bytes = 64,
                                  .n_metrics = 1,
                                  .metrics = &metric}};
    say(t->wire, &m);
}

static void on_welcome(struct fake_trainer *t, const struct msg_welcome *w)
{
    struct error err;
    struct chain *c = &t->chain;
    char *data;
    size_t n;
    t->epoch = w->epoch;
    int64_t ahead = c->step - w->committed_steps;
    bool useful = c->step >= 0 && (ahead == 0 || (ahead == 1 && t->done_valid));
    if (!useful && w->checkpoint[0]) {
        REQUIRE(file_read(w->checkpoint, 4096, &data, &n, &err) == STATUS_OK);
        snprintf(c->hash, sizeof c->hash, "%.64s", data);
        REQUIRE(strcmp(c->hash, w->checkpoint_hash) == 0);
        free(data);
        c->step = w->checkpoint_step;
    } else if (!useful) {
        hash_sha256_hex("init", 4, c->hash);
        c->step = 0;
    }
    if (w->checkpoint_step == w->committed_steps) {
        chain_file("weights", c, t->path, sizeof t->path);
        step_done(t);
    }
}

// ---- checks -------------------------------------------------------------------------------------------------------------------

static uint64_t tokens_hash(const int32_t *ids, const uint8_t *mask, const float *logprobs,
                            const int32_t *versions, const float *temperatures, int32_t n)
{
    size_t k = (size_t)n;
    uint64_t h = hash64_seed(ids, k * 4, hash64(mask, k));
    h = hash64_seed(logprobs, k * 4, h);
    return hash64_seed(temperatures, k * 4, hash64_seed(versions, k * 4, h));
}

static void note_members(struct fake_trainer *t, const struct msg_prepare *p)
{
    int64_t at = 0;
    for (int32_t i = 0; i < p->n_members && t->n_seen < 4096; i++) {
        const struct msg_member *m = &p->members[i];
        t->seen[t->n_seen++] =
            (struct seen){p->step, m->trajectory, m->attempt,
                          tokens_hash(p->ids + at, p->mask + at, p->logprobs + at, p->versions + at,
                                      p->temperatures + at, m->n_tokens)};
        at += m->n_tokens;
    }
}

static const struct seen *seen_member(const struct fake_trainer *t, int64_t step,
                                      const struct msg_check_segment *s, int32_t *ret_n)
{
    const struct seen *found = NULL;
    *ret_n = 0;
    for (int i = 0; i < t->n_seen; i++) {
        const struct seen *v = &t->seen[i];
        *ret_n += v->step == step;
        if (v->step == step && v->trajectory == s->trajectory && v->attempt == s->attempt)
            found = v;
    }
    return found;
}

// The share, out of the step, the same tokens, every KV event.
static void verify_segments(const struct fake_trainer *t, const struct msg_check *c)
{
    int64_t at = 0, kv_at = 0;
    for (int32_t i = 0; i < c->n_segments; i++) {
        const struct msg_check_segment *s = &c->segments[i];
        int32_t n, turns = 0;
        const struct seen *v = seen_member(t, c->step, s, &n);
        if (n > 0) {
            REQUIRE(v && v->hash == tokens_hash(c->ids + at, c->mask + at, c->logprobs + at, c->versions + at,
                                                c->temperatures + at, s->n_tokens));
            REQUIRE(c->n_segments == (int32_t)ceil(SHARE * n));
        }
        for (int64_t k = at; k < at + s->n_tokens; k++)
            turns += c->mask[k] && !c->mask[k - 1];
        REQUIRE(s->n_kv == turns);
        for (int32_t k = 0; k < s->n_kv; k++)
            REQUIRE(c->kv[kv_at + k].kind == KV_REFIT && c->mask[at + c->kv[kv_at + k].at_token]);
        at += s->n_tokens;
        kv_at += s->n_kv;
    }
}

// Every version that is named, with its file.
static void verify_weights(const struct msg_check *c)
{
    for (int64_t k = 0; k < c->n_tokens; k++) {
        bool named = c->versions[k] < 0;
        for (int32_t i = 0; i < c->n_weights && !named; i++)
            named = c->weights[i].version == c->versions[k];
        REQUIRE(named);
    }
    for (int32_t i = 0; i < c->n_weights; i++) {
        char *data;
        size_t n;
        struct error err;
        REQUIRE(file_read(c->weights[i].path, 4096, &data, &n, &err) == STATUS_OK);
        REQUIRE(n == 64 && memcmp(data, c->weights[i].hash, 64) == 0);
        free(data);
    }
}

static void on_check(struct fake_trainer *t, const struct msg_check *c)
{
    verify_segments(t, c);
    verify_weights(c);
    if (faults == CHECK_DEATHS || (faults == CHECK_DEATH && t->restarts == 0 && c->step == SFT_STEPS + 3))
        _exit(7);
    if (faults == NO_FAULTS && c->step == STEPS - 1)
        usleep(700000); // the run waits for the outcome
    const struct msg_check_segment *last = &c->segments[c->n_segments - 1];
    struct msg m = {.type = MSG_CHECK_DONE,
                    .check_done = {.epoch = t->epoch,
                                   .id = c->id,
                                   .compared = faults == NO_WEIGHTS ? 0 : c->n_segments,
                                   .skipped = faults == NO_WEIGHTS ? c->n_segments : 0,
                                   .crossing = faults == NO_WEIGHTS ? 0 : 1,
                                   .error = ""}};
    for (int64_t k = 0; k < c->n_tokens; k++)
        m.check_done.tokens += faults != NO_WEIGHTS && c->mask[k];
    bool drifts = faults == DRIFT || faults == PASSING || faults == DRIFT_AND_HISTORY;
    if ((faults == DRIFT_AND_HISTORY || faults == ODD_HISTORY) && c->step == SFT_STEPS + DRIFT_AT) {
        m.check_done.skipped = 1;
        m.check_done.compared--;
        m.check_done.error = "1 segments have a history that contradicts itself";
    }
    if ((drifts && c->step == SFT_STEPS + DRIFT_AT) || faults == OTHER_ISA) {
        m.check_done.differs = true;
        m.check_done.max_abs_diff = faults == OTHER_ISA ? 0.01 : 1e-6;
        m.check_done.trajectory = last->trajectory;
        m.check_done.attempt = last->attempt;
        m.check_done.segment = last->segment;
        m.check_done.position = last->n_tokens - 1;
        m.check_done.version = c->versions[c->n_tokens - 1] < 0 ? 0 : c->versions[c->n_tokens - 1];
        m.check_done.recorded = -1.5f;
        m.check_done.rescored = -1.500001f;
    }
    say(t->wire, &m);
}

static void on_trace(struct fake_trainer *t, const struct msg_trace *q)
{
    char *data, hash[HASH_HEX];
    size_t n;
    struct error err;
    REQUIRE(q->epoch == t->epoch && file_read(q->path, 4096, &data, &n, &err) == STATUS_OK);
    snprintf(hash, sizeof hash, "%.64s", data);
    free(data);
    REQUIRE(strcmp(hash, q->hash) == 0);
    answer_trace(t->wire, q, true, hash, "", 3);
}

// ---- steps --------------------------------------------------------------------------------------------------------------------

static void on_prepare(struct fake_trainer *t, const struct msg_prepare *p)
{
    struct chain *c = &t->chain;
    if (!(t->done_valid && c->step == p->step + 1)) {
        if (t->restarts == 0 && p->step == SFT_STEPS + 3 && (faults == LOSSES || faults == OTHER_BITS))
            _exit(7); // in the middle of a step
        if (t->restarts == 0 && p->step == SFT_STEPS + 2 && faults == HANGS)
            return; // alive, but never done
        if (t->restarts == 1 && faults == OTHER_BITS)
            c->hash[0] ^= 1;
        chain_step(c, p);
        note_members(t, p);
        t->done_valid = true;
        t->checkpoint = p->checkpoint;
        t->path[0] = 0;
        if (p->publish)
            chain_file("weights", c, t->path, sizeof t->path);
        if (p->replay && faults != OTHER_BITS)
            REQUIRE(strcmp(p->expect_hash, c->hash) == 0);
    }
    step_done(t);
    if (faults == LOSSES && t->restarts == 1 && p->step == SFT_STEPS + 6) {
        wire_close(t->wire);
        _exit(7); // before the acknowledgement
    }
}

static void write_checkpoint(struct fake_trainer *t)
{
    char at[400];
    chain_file("checkpoints", &t->chain, at, sizeof at);
    struct msg note = {
        .type = MSG_CHECKPOINT,
        .checkpoint = {.epoch = t->epoch, .step = t->chain.step, .path = at, .hash = t->chain.hash}};
    say(t->wire, &note);
    t->checkpoint = false;
}

static void on_commit(struct fake_trainer *t, const struct msg_commit_ack *a)
{
    if (a->step == SFT_STEPS - 1 && faults == LOST_ACK) {
        faults =
            NO_FAULTS; // the orchestrator dies between the commit of a stage's last step and its word to us
        kill(pids[ORCH], SIGKILL);
        return;
    }
    if (a->epoch != t->epoch)
        return;
    if (a->result == COMMIT_FENCED && faults == HANGS)
        _exit(7);
    REQUIRE(a->result == COMMIT_OK || faults == OTHER_BITS);
    if (t->checkpoint && a->step == t->chain.step - 1)
        write_checkpoint(t);
}

static int trainer_main(int restarts)
{
    static struct fake_trainer t;
    bool welcomed = false;
    int64_t heard = 0, said = 0;
    t = (struct fake_trainer){.restarts = restarts, .epoch = -1, .chain = {.step = -1}};
    t.wire = join("trainer-0", &t.hello, restarts);
    t.hello.role = ROLE_TRAINER;
    for (;;) {
        struct msg m;
        if (!next(t.wire, &t.hello, &welcomed, &heard, &said, &m))
            continue;
        if (m.type == MSG_WELCOME && m.welcome.epoch != t.epoch)
            on_welcome(&t, &m.welcome);
        if (m.type == MSG_PREPARE && m.prepare.epoch == t.epoch)
            on_prepare(&t, &m.prepare);
        if (m.type == MSG_COMMIT_ACK)
            on_commit(&t, &m.commit_ack);
        if (m.type == MSG_CHECK && m.check.epoch == t.epoch)
            on_check(&t, &m.check);
        if (m.type == MSG_TRACE)
            on_trace(&t, &m.trace);
        if (m.type == MSG_CHECKPOINT && !m.checkpoint.path[0] && m.checkpoint.step == t.chain.step)
            write_checkpoint(&t); // asked for
        if (m.type == MSG_CHECKPOINT)
            for (int32_t i = 0; i < m.checkpoint.n_prune; i++)
                REQUIRE(unlink(m.checkpoint.prune[i]) == 0);
        if (t.chain.step >= 0) {
            t.hello.version = t.chain.step;
            memcpy(t.text, t.chain.hash, sizeof t.text);
            t.hello.version_hash = t.text;
        }
        wire_release(t.wire);
    }
}

#endif
