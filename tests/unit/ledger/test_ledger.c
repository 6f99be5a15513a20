// The ledger: every move, PREPARE/COMMIT exactly once, what survives a reopening, and an audit that finds
// planted damage.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "ledger/ledger.h"
#include "ledger/reader.h"

#define OK(call)                                                                                             \
    do {                                                                                                     \
        struct error e_ = {0};                                                                               \
        enum status s_;                                                                                      \
        struct error *err = &e_;                                                                             \
        s_ = (call);                                                                                         \
        if (s_)                                                                                              \
            fail_msg("%s: %s: %s", #call, status_name(s_), e_.text);                                         \
    } while (0)
#define FAILS(want, call)                                                                                    \
    do {                                                                                                     \
        struct error e_ = {0};                                                                               \
        struct error *err = &e_;                                                                             \
        enum status s_ = (call);                                                                             \
        if (s_ != (want) || !e_.text[0])                                                                     \
            fail_msg("%s: %s (%s), wanted %s", #call, status_name(s_), e_.text, status_name(want));          \
    } while (0)

struct fixture {
    char dir[64];
    struct ledger *l;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/ooze-ledger-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    OK(ledger_open(f->dir, clock_system(), &f->l, err));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    ledger_close(f->l);
    OK(file_remove_tree(f->dir, err));
    free(f);
    return 0;
}

static const char *hash_of(int64_t version)
{
    static char hex[HASH_HEX];
    hash_sha256_hex(&version, sizeof version, hex);
    return hex;
}

static void reopen(struct fixture *f)
{
    ledger_close(f->l);
    OK(ledger_open(f->dir, clock_system(), &f->l, err));
}

// A group of `size` trajectories with a prompt of 3 tokens and a response of 4, scored.
static void make_group(struct ledger *l, int64_t group, int64_t first, int32_t size, int64_t version)
{
    struct ledger_group g = {
        .id = group, .task = 0, .prompt_index = group, .seed = 0xfedcba9876543210u, .size = size};
    OK(ledger_group_add(l, &g, err));
    for (int32_t i = 0; i < size; i++) {
        struct ledger_unit u = {.trajectory = first + i, .group = group, .member = i};
        OK(ledger_unit_add(l, &u, err));
        OK(ledger_unit_generating(l, u.trajectory, 0, "ep", err));
        const int32_t prompt[] = {1, 2, 3}, reply[] = {4, 5, 6, 7};
        const float lp[] = {-0.1f, -0.2f, -0.3f, -0.4f};
        const struct ledger_span spans[] = {{version, 0, 2}, {version + 1, 2, 4}};
        struct ledger_piece p = {.trajectory = u.trajectory, .kind = PIECE_GIVEN, .n = 3, .ids = prompt};
        OK(ledger_piece_add(l, &p, err));
        p = (struct ledger_piece){.trajectory = u.trajectory,
                                  .offset = 3,
                                  .kind = PIECE_SAMPLED,
                                  .n = 4,
                                  .ids = reply,
                                  .logprobs = lp,
                                  .n_spans = 2,
                                  .spans = spans,
                                  .temperature = 0.7f};
        OK(ledger_piece_add(l, &p, err));
        struct ledger_turn t = {
            .trajectory = u.trajectory, .turn = 0, .message = "{}", .reply = "{\"done\":true}", .done = true};
        OK(ledger_turn_add(l, &t, err));
        OK(ledger_unit_scored(l, u.trajectory, 0, i % 2, NULL, false, err));
        OK(ledger_unit_ready(l, u.trajectory, 0, i % 2 ? 1 : -1, err));
    }
}

static void prepare(struct ledger *l, int64_t step, int64_t first, int32_t n)
{
    struct ledger_member m[16];
    for (int32_t i = 0; i < n; i++)
        m[i] = (struct ledger_member){
            .trajectory = first + i, .multiplicity = 1 + i % 2, .advantage = i % 2 ? 1 : -1};
    struct ledger_step s = {.step = step,
                            .lr = 1e-3,
                            .packing_seed = UINT64_MAX,
                            .updates = 1,
                            .n_members = n,
                            .members = m,
                            .publish = true};
    OK(ledger_step_prepare(l, &s, err));
}

static enum status commit(struct ledger *l, int64_t step, bool applied, const char *hash, struct error *err)
{
    struct ledger_weights w = {step + 1, hash, "", 10};
    return ledger_step_commit(l, step, applied, "", &w, "{\"train/loss\": 1.5}", err);
}

static void audit(struct fixture *f, bool want_ok, const char *want_rule)
{
    struct ledger *r;
    json_t *j;
    const int64_t max_lag[] = {3};
    OK(ledger_open_readonly(f->dir, &r, err));
    OK(ledger_audit(r, max_lag, 1, true, &j, err));
    char *text = json_text(j);
    json_t *violations = json_object_get(j, "violations"), *v;
    size_t i;
    bool named = false;
    json_array_foreach(violations, i, v) named |=
        want_rule && strcmp(json_string_value(json_object_get(v, "rule")), want_rule) == 0;
    if (json_is_true(json_object_get(j, "ok")) != want_ok)
        fail_msg("audit: %s", text);
    if (want_rule && !named)
        fail_msg("audit does not name rule %s: %s", want_rule, text);
    free(text);
    json_decref(j);
    ledger_close(r);
}

static void test_life_of_a_unit(void **state)
{
    struct fixture *f = *state;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 4, 0);
    OK(ledger_weights_set(f->l, &(struct ledger_weights){0, hash_of(0), "", 5}, err));
    OK(ledger_commit(f->l, false, err));
    OK(ledger_begin(f->l, err));
    prepare(f->l, 0, 1, 4);
    OK(ledger_commit(f->l, true, err));
    audit(f, false, "lag"); // version 1 tokens trained at version 0
    reopen(f);
    struct ledger_state s;
    OK(ledger_state_read(f->l, &s, err));
    assert_true(s.has_prepared);
    assert_int_equal(s.next_step, 1);
    assert_int_equal(s.committed_steps, 0);
    assert_int_equal(s.next_trajectory, 5);
    struct arena a;
    arena_init(&a, 0);
    struct ledger_step_full full;
    OK(ledger_step_read(f->l, 0, &a, &full, err));
    assert_false(full.committed);
    assert_int_equal(full.step.n_members, 4);
    assert_true(full.step.packing_seed == UINT64_MAX);
    const struct ledger_sequence *q = &full.sequences[3];
    assert_int_equal(q->n, 7);
    assert_int_equal(q->member.multiplicity, 2);
    const uint8_t mask[] = {0, 0, 0, 1, 1, 1, 1};
    const int32_t versions[] = {-1, -1, -1, 0, 0, 1, 1};
    assert_memory_equal(q->mask, mask, 7);
    assert_memory_equal(q->versions, versions, sizeof versions);
    assert_true(q->logprobs[6] == -0.4f && q->logprobs[0] == 0);
    assert_true(q->temperatures[3] == 0.7f && q->temperatures[2] == 1);
    arena_done(&a);
}

static void test_commit_once(void **state)
{
    struct fixture *f = *state;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 4, -1 + 1);
    OK(ledger_weights_set(f->l, &(struct ledger_weights){0, hash_of(0), "", 5}, err));
    prepare(f->l, 0, 1, 4);
    OK(commit(f->l, 0, true, hash_of(1), err));
    OK(ledger_commit(f->l, true, err));
    OK(ledger_begin(f->l, err));
    FAILS(STATUS_EXISTS, commit(f->l, 0, true, hash_of(1), err));
    FAILS(STATUS_CORRUPT, commit(f->l, 0, true, hash_of(2), err));
    FAILS(STATUS_INTERNAL, commit(f->l, 1, true, hash_of(2), err));
    ledger_rollback(f->l);
    struct ledger_counts c;
    OK(ledger_counts_read(f->l, &c, err));
    assert_int_equal(c.units[UNIT_TRAINED], 4);
    assert_int_equal(c.tokens_trained, 16);
}

static void test_rejected_step(void **state)
{
    struct fixture *f = *state;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 2, 0);
    prepare(f->l, 0, 1, 2);
    OK(commit(f->l, 0, false, hash_of(0), err));
    OK(ledger_commit(f->l, true, err));
    struct ledger_counts c;
    OK(ledger_counts_read(f->l, &c, err));
    assert_int_equal(c.dropped[DROP_STEP_REJECTED], 2);
    assert_int_equal(c.tokens_dropped, 8);
}

static void test_illegal_moves(void **state)
{
    struct fixture *f = *state;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 2, 0);
    prepare(f->l, 0, 1, 2);
    OK(ledger_commit(f->l, false, err));
    OK(ledger_begin(f->l, err));
    FAILS(STATUS_INTERNAL, ledger_unit_drop(f->l, 1, 0, DROP_STALE, NULL, err)); // leased
    assert_false(ledger_in_transaction(f->l));                                   // rolled back
    FAILS(STATUS_INTERNAL, ledger_unit_drop(f->l, 1, 0, DROP_STALE, NULL, err)); // outside a transaction
    OK(ledger_begin(f->l, err));
    FAILS(STATUS_INTERNAL, ledger_unit_scored(f->l, 99, 0, 1, NULL, false, err));
    OK(ledger_begin(f->l, err));
    FAILS(STATUS_NUMERIC, ledger_unit_scored(f->l, 1, 0, NAN, NULL, false, err));
    struct ledger_member m = {.trajectory = 1, .multiplicity = 1};
    struct ledger_step s = {.step = 1, .lr = 1, .n_members = 1, .members = &m};
    FAILS(STATUS_INTERNAL, ledger_step_prepare(f->l, &s, err)); // step 0 is open
    ledger_rollback(f->l);
    audit(f, false, "lag");
}

static void test_unit_in_two_steps(void **state)
{
    struct fixture *f = *state;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 2, 0);
    prepare(f->l, 0, 1, 2);
    OK(commit(f->l, 0, true, hash_of(1), err));
    OK(ledger_commit(f->l, false, err));
    OK(ledger_begin(f->l, err));
    struct ledger_member m = {.trajectory = 1, .multiplicity = 1};
    struct ledger_step s = {.step = 1, .lr = 1, .n_members = 1, .members = &m};
    struct error e;
    assert_int_not_equal(ledger_step_prepare(f->l, &s, &e), STATUS_OK);
    ledger_rollback(f->l);
}

static void test_pieces_refused(void **state)
{
    struct fixture *f = *state;
    const int32_t ids[] = {1, 2}, bad[] = {1, -2};
    const float lp[] = {-1, -1}, nan_lp[] = {-1, NAN}, high[] = {-1, 0.5f};
    const struct ledger_span whole[] = {{3, 0, 2}}, gap[] = {{3, 0, 1}}, back[] = {{3, 0, 1}, {2, 1, 2}};
    OK(ledger_begin(f->l, err));
    OK(ledger_group_add(f->l, &(struct ledger_group){.id = 1, .size = 1}, err));
    OK(ledger_unit_add(f->l, &(struct ledger_unit){.trajectory = 1, .group = 1}, err));
    const struct ledger_piece ok = {.trajectory = 1,
                                    .kind = PIECE_SAMPLED,
                                    .n = 2,
                                    .ids = ids,
                                    .logprobs = lp,
                                    .n_spans = 1,
                                    .spans = whole,
                                    .temperature = 1};
    struct ledger_piece p = ok;
#define REFUSED(change)                                                                                      \
    p = ok;                                                                                                  \
    change;                                                                                                  \
    FAILS(STATUS_INVALID, ledger_piece_add(f->l, &p, err))
    REFUSED(p.offset = 1);
    REFUSED(p.n = 0);
    REFUSED(p.ids = bad);
    REFUSED(p.logprobs = NULL);
    REFUSED(p.logprobs = nan_lp);
    REFUSED(p.logprobs = high);
    REFUSED(p.spans = gap);
    REFUSED((p.spans = back, p.n_spans = 2));
    REFUSED(p.kind = PIECE_GIVEN);
    OK(ledger_piece_add(f->l, &ok, err));
    FAILS(STATUS_INVALID, ledger_piece_add(f->l, &ok, err)); // again: the segment ends at 2
    OK(ledger_commit(f->l, false, err));
}

static void test_sft_units(void **state)
{
    struct fixture *f = *state;
    const int32_t ids[] = {1, 2};
    OK(ledger_begin(f->l, err));
    OK(ledger_weights_set(f->l, &(struct ledger_weights){0, hash_of(0), "", 5}, err));
    OK(ledger_group_add(f->l, &(struct ledger_group){.id = 1, .task = -1, .size = 1}, err));
    for (int epoch = 0; epoch < 2; epoch++) {
        struct ledger_unit u = {
            .trajectory = 1, .attempt = epoch, .group = 1, .task = -1, .source = SOURCE_SFT};
        OK(ledger_unit_add(f->l, &u, err));
        OK(ledger_piece_add(f->l,
                            &(struct ledger_piece){
                                .trajectory = 1, .attempt = epoch, .kind = PIECE_GIVEN, .n = 2, .ids = ids},
                            err));
        OK(ledger_piece_add(
            f->l,
            &(struct ledger_piece){
                .trajectory = 1, .attempt = epoch, .offset = 2, .kind = PIECE_TARGET, .n = 2, .ids = ids},
            err));
        OK(ledger_unit_ready(f->l, 1, epoch, 1, err));
        struct ledger_member m = {.trajectory = 1, .attempt = epoch, .multiplicity = 1, .advantage = 1};
        struct ledger_step s = {.step = epoch, .lr = 1, .n_members = 1, .members = &m};
        OK(ledger_step_prepare(f->l, &s, err));
        OK(commit(f->l, epoch, true, hash_of(epoch + 1), err));
    }
    OK(ledger_commit(f->l, true, err));
    audit(f, true, NULL);
}

static enum status count_rows(void *ctx, const struct ledger_group *g, const struct ledger_unit_row *u,
                              struct error *err)
{
    (void)err;
    assert_true(g->seed == 0xfedcba9876543210u);
    assert_int_equal(u->n_turns, 1);
    assert_int_equal(u->version_max, 1);
    (*(int *)ctx)++;
    return STATUS_OK;
}

static void test_open_groups(void **state)
{
    struct fixture *f = *state;
    int n = 0;
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 4, 0);
    make_group(f->l, 2, 5, 4, 0);
    OK(ledger_unit_drop(f->l, 5, 0, DROP_ZERO_VARIANCE, "all equal", err));
    prepare(f->l, 0, 1, 4);
    OK(commit(f->l, 0, true, hash_of(1), err));
    OK(ledger_commit(f->l, true, err));
    OK(ledger_open_groups(f->l, 0, count_rows, &n, err));
    assert_int_equal(n, 4); // group 2 whole, group 1 is done
}

// The process dies with an uncommitted transaction: nothing of it is there; what was committed is.
static void test_killed_writer(void **state)
{
    struct fixture *f = *state;
    ledger_close(f->l);
    pid_t pid = fork();
    if (pid == 0) {
        struct ledger *l;
        struct error e;
        if (ledger_open(f->dir, clock_system(), &l, &e) || ledger_begin(l, &e))
            _exit(2);
        make_group(l, 1, 1, 2, 0);
        if (ledger_commit(l, true, &e) || ledger_begin(l, &e))
            _exit(2);
        make_group(l, 2, 3, 2, 0);
        _exit(0); // without commit
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    OK(ledger_open(f->dir, clock_system(), &f->l, err));
    struct ledger_state s;
    OK(ledger_state_read(f->l, &s, err));
    assert_int_equal(s.next_group, 2);
    assert_int_equal(s.next_trajectory, 3);
}

static void shell(struct fixture *f, const char *format, const char *what)
{
    char cmd[1024], at[600];
    snprintf(at, sizeof at, "cd %s && ", f->dir);
    snprintf(cmd, sizeof cmd, format, at, what);
    assert_int_equal(system(cmd), 0);
}

// Every kind of planted damage is found and named.
static void test_audit_finds_damage(void **state)
{
    struct fixture *f = *state;
    if (system("command -v sqlite3 >/dev/null") != 0)
        skip();
    OK(ledger_begin(f->l, err));
    make_group(f->l, 1, 1, 2, 0);
    make_group(f->l, 2, 3, 2, 0);
    for (int s = 0; s < 2; s++) {
        struct ledger_weights w = {s, hash_of(s), "", 5};
        OK(ledger_weights_set(f->l, &w, err));
    }
    OK(ledger_group_add(f->l, &(struct ledger_group){.id = 9, .task = -1, .size = 1}, err));
    const int32_t ids[] = {1};
    OK(ledger_unit_add(
        f->l, &(struct ledger_unit){.trajectory = 9, .group = 9, .task = -1, .source = SOURCE_SFT}, err));
    OK(ledger_piece_add(
        f->l, &(struct ledger_piece){.trajectory = 9, .kind = PIECE_TARGET, .n = 1, .ids = ids}, err));
    OK(ledger_unit_ready(f->l, 9, 0, 1, err));
    prepare(f->l, 0, 9, 1);
    OK(commit(f->l, 0, true, hash_of(1), err));
    prepare(f->l, 1, 1, 2);
    OK(commit(f->l, 1, true, hash_of(2), err));
    OK(ledger_commit(f->l, true, err));
    audit(f, true, NULL);
    static const struct {
        const char *break_it, *rule;
    } cases[] = {
        {"UPDATE unit SET reason=1 WHERE trajectory=3", "state"},
        {"UPDATE unit SET reward=NULL WHERE trajectory=3", "scored"},
        {"UPDATE unit SET advantage=NULL WHERE trajectory=3", "advantage"},
        {"UPDATE unit SET state=4, step=1 WHERE trajectory=3", "leased-step"},
        {"UPDATE unit SET state=5 WHERE trajectory=3", "trained-step"},
        {"DELETE FROM step_batch WHERE trajectory=1", "trained-member"},
        {"UPDATE unit SET state=3 WHERE trajectory=1", "member-state"},
        {"UPDATE unit SET step=0 WHERE trajectory=1", "member-state"},
        {"INSERT INTO piece SELECT trajectory,attempt,1,0,turn,kind,n,ids,logprobs,spans,temperature,kv FROM "
         "piece "
         "WHERE trajectory=1 AND kind=1",
         "all-segments"},
        {"UPDATE step_batch SET ord=ord+1 WHERE step=0", "member-order"},
        {"INSERT INTO unit SELECT "
         "trajectory,attempt+1,grp,member,stage,task,source,state,reason,detail,episode,reward,"
         "components,truncated,advantage,step,n_turns,0,n_sampled,version_min,version_max,issued_ms,scored_"
         "ms,ended_ms"
         " FROM unit WHERE trajectory=1",
         "one-attempt"},
        {"DELETE FROM step WHERE step=0", "step-chain"},
        {"UPDATE step SET hash='00' WHERE step=1", "step-hash"},
        {"UPDATE weights SET hash='00' WHERE version=2", "weights"},
        {"INSERT INTO checkpoint VALUES(7,'x','00',0,NULL,0,0)", "checkpoint"},
        {"UPDATE piece SET trajectory=77 WHERE trajectory=1", "piece-unit"},
        {"UPDATE turn SET trajectory=77 WHERE trajectory=1", "turn-unit"},
        {"UPDATE unit SET n_tokens=n_tokens+1 WHERE trajectory=2", "token-count"},
        {"UPDATE unit SET n_sampled=0 WHERE trajectory=1", "trained-tokens"},
        {"UPDATE grp SET size=1 WHERE id=1", "group-size"},
        {"UPDATE piece SET segment=1 WHERE trajectory=3", "tito-segments"},
        {"UPDATE piece SET pos=pos+1 WHERE trajectory=1 AND pos>0", "tito-contiguous"},
        {"UPDATE piece SET logprobs=NULL WHERE trajectory=3 AND kind=1", "tito-logprobs"},
        {"UPDATE piece SET kind=2, logprobs=NULL WHERE trajectory=3 AND kind=1", "tito-source"},
        {"UPDATE piece SET logprobs=x'0000803f0000803f0000803f0000803f' WHERE trajectory=3 AND kind=1",
         "tito-values"},
        {"UPDATE piece SET ids=x'ffffffff0000000000000000' WHERE trajectory=3 AND kind=0", "tito-values"},
        {"UPDATE piece SET spans=NULL WHERE trajectory=3 AND kind=1", "tito-versions"},
        {"UPDATE unit SET step=9 WHERE trajectory=1", "lag"},
    };
    ledger_close(f->l);
    f->l = NULL;
    shell(f, "%scp ledger.sqlite%s whole", "");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        shell(f, "%ssqlite3 ledger.sqlite \"PRAGMA foreign_keys=0; %s\"", cases[i].break_it);
        audit(f, false, cases[i].rule);
        shell(f, "%srm -f ledger.sqlite-* && cp whole ledger.sqlite%s", "");
        audit(f, true, NULL);
    }
}

static void test_readonly_refuses(void **state)
{
    struct fixture *f = *state;
    struct ledger *r;
    OK(ledger_open_readonly(f->dir, &r, err));
    FAILS(STATUS_REFUSED, ledger_begin(r, err));
    ledger_close(r);
    FAILS(STATUS_NOTFOUND, ledger_open_readonly("/nonexistent", &r, err));
}

static void test_show(void **state)
{
    struct fixture *f = *state;
    json_t *j;
    OK(ledger_begin(f->l, err));
    OK(ledger_task_set(
        f->l,
        &(struct ledger_task){.id = 0, .name = "sort", .url = "http://x", .origin = "config", .ratio = 1},
        err));
    make_group(f->l, 1, 1, 2, 0);
    for (int i = 0; i < 4; i++)
        OK(ledger_eval_add(f->l,
                           &(struct ledger_eval){.version = 3,
                                                 .label = "stage:sft",
                                                 .prompt_index = i / 2,
                                                 .sample = i % 2,
                                                 .reward = i == 0,
                                                 .success = i == 0,
                                                 .n_tokens = 5},
                           err));
    OK(ledger_commit(f->l, true, err));
    OK(ledger_show_unit(f->l, 2, 0, &j, err));
    json_t *tokens = json_object_get(json_array_get(json_object_get(j, "segments"), 0), "tokens");
    assert_int_equal(json_array_size(tokens), 7);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(tokens, 5), "version")), 1);
    assert_string_equal(json_string_value(json_object_get(j, "task")), "sort");
    json_decref(j);
    OK(ledger_eval_summary(f->l, &j, err));
    json_t *sort = json_object_get(json_object_get(json_array_get(j, 0), "tasks"), "sort");
    assert_true(json_real_value(json_object_get(sort, "success")) == 0.25);
    assert_true(json_real_value(json_object_get(sort, "pass_at_samples")) == 0.5);
    json_decref(j);
    OK(ledger_rewards(f->l, 10, &j, err));
    assert_true(json_real_value(json_object_get(json_object_get(j, "sort"), "mean")) == 0.5);
    json_decref(j);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_life_of_a_unit),     T(test_commit_once),       T(test_rejected_step),
        T(test_illegal_moves),      T(test_unit_in_two_steps), T(test_pieces_refused),
        T(test_sft_units),          T(test_open_groups),       T(test_killed_writer),
        T(test_audit_finds_damage), T(test_readonly_refuses),  T(test_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
