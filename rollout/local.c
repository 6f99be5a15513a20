// JSON lines on an engine: see local.h. Runs on the main thread.
//
// Lines are read while fewer than IN_FLIGHT are unanswered, so that a long file is batched and a short one answered at once;
// answers keep the order of the lines.
#include "rollout/local.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/folder.h"
#include "rollout/request.h"

#define IN_FLIGHT      512
#define INPUT_CHUNK    65536
#define LINE_MAX_BYTES (64 << 20)

struct answer { // of line number `line`; slot line % IN_FLIGHT
    bool open, done;
    struct buf ids, logprobs; // members of the JSON arrays, as they come
    char *text;               // the whole line, when done
};

struct local {
    const struct local_config *config;
    int in; // descriptor
    FILE *out;
    struct buf input; // read and not yet taken
    struct engine *engine;
    struct answer answers[IN_FLIGHT];
    uint64_t first, next; // lines [first, next) are unanswered
    struct outputs outputs;
    bool ended;
};

static struct answer *slot(struct local *l, uint64_t line)
{
    return &l->answers[line % IN_FLIGHT];
}

static void answer_error(struct answer *a, const char *why)
{
    struct buf b = {0};
    buf_puts(&b, "{\"error\":");
    json_put_string(&b, why, strlen(why));
    buf_putc(&b, '}');
    a->text = buf_take(&b, NULL);
    a->done = true;
}

static enum status submit(struct local *l, const char *text, size_t n, uint64_t line, struct error *err)
{
    static const struct request_style style = {"max_new", "min_new", "seed", 1};
    char what[64];
    snprintf(what, sizeof what, "line %llu", (unsigned long long)line + 1);
    json_t *j = NULL;
    enum status st = json_parse(text, n, what, &j, err);
    if (st != STATUS_OK)
        return st;
    struct engine_job job = {.msg = {.job = line + 1, .min_version = -1}};
    int32_t *ids = NULL;
    int64_t seed, trajectory;
    const json_t *given = json_object_get(j, "ids");
    st = request_sampling(j, what, &style, &job.msg.sampling, &seed, err);
    if (st == STATUS_OK)
        st = json_get_int(j, "trajectory", false, (int64_t)line, 0, INT64_MAX, what, &trajectory, err);
    if (st == STATUS_OK)
        st = request_ids(given ? given : json_object_get(j, "input_ids"), "ids", MSG_TOKENS_MAX, &ids,
                         &job.msg.n_ids, err);
    if (st == STATUS_OK) {
        job.msg.run_seed = (uint64_t)seed;
        job.msg.trajectory = (uint64_t)trajectory;
        job.msg.ids = ids;
        job.flush_tokens = 64;
        if (l->config->score) {
            job.msg.prompt_logprobs = true;
            job.msg.sampling.max_new = job.msg.sampling.min_new = 0;
        }
        st = engine_submit(l->engine, &job, err);
    }
    free(ids);
    json_decref(j);
    return st;
}

static void take_line(struct local *l, const char *line, size_t n)
{
    struct error why;
    if (strspn(line, " \t\r\n") >= n)
        return;
    struct answer *a = slot(l, l->next);
    *a = (struct answer){.open = true};
    if (submit(l, line, n, l->next, &why) != STATUS_OK)
        answer_error(a, why.text);
    l->next++;
}

// Takes what is there to be read; waits for it only when nothing is being computed.
static enum status read_input(struct local *l, bool *ret_any, struct error *err)
{
    struct pollfd p = {.fd = l->in, .events = POLLIN};
    int n = poll(&p, 1, l->next == l->first ? -1 : 0);
    *ret_any = n > 0;
    if (n == 0 || (n < 0 && errno == EINTR))
        return STATUS_OK;
    buf_reserve(&l->input, INPUT_CHUNK);
    ssize_t got = n < 0 ? -1 : read(l->in, l->input.data + l->input.len, INPUT_CHUNK);
    if (got < 0)
        return error_errno(err, errno, "reading standard input");
    l->ended = got == 0;
    l->input.len += (size_t)got;
    l->input.data[l->input.len] = 0;
    if (l->input.len > LINE_MAX_BYTES && !memchr(l->input.data, '\n', l->input.len))
        return error_set(err, STATUS_LIMIT, "standard input: a line is longer than %d bytes", LINE_MAX_BYTES);
    return STATUS_OK;
}

// Reads lines until IN_FLIGHT are unanswered, the input ends, or none has come yet while others are being computed.
static enum status read_lines(struct local *l, struct error *err)
{
    while (l->next - l->first < IN_FLIGHT) {
        char *end = l->input.len ? memchr(l->input.data, '\n', l->input.len) : NULL;
        if (end) {
            *end = 0;
            size_t n = (size_t)(end - l->input.data);
            take_line(l, l->input.data, n);
            buf_consume(&l->input, n + 1);
            continue;
        }
        if (l->ended) {
            if (l->input.len)
                take_line(l, l->input.data, l->input.len);
            buf_clear(&l->input);
            break;
        }
        bool any;
        enum status st = read_input(l, &any, err);
        if (st != STATUS_OK || !any)
            return st;
    }
    return STATUS_OK;
}

static void put_arrays(struct buf *b, const char *name, const struct buf *members)
{
    buf_printf(b, "\"%s\":[%s]", name, members->len ? members->data : "");
}

static void finish(struct answer *a, const struct output *i, bool score)
{
    static const char *const names[] = {"", "stop", "length", "abort", "error"};
    struct buf b = {0};
    if (i->finish == FINISH_ERROR) {
        answer_error(a, i->error);
        return;
    }
    buf_putc(&b, '{');
    if (!score) {
        put_arrays(&b, "output_ids", &a->ids);
        buf_putc(&b, ',');
    }
    put_arrays(&b, "logprobs", &a->logprobs);
    if (!score)
        buf_printf(&b, ",\"finish\":\"%s\"", names[i->finish]);
    buf_printf(&b, ",\"prompt_tokens\":%d,\"cached_tokens\":%d}", i->prompt_tokens, i->cached_tokens);
    a->text = buf_take(&b, NULL);
    a->done = true;
}

static void put_members(struct buf *to, const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        buf_printf(to, "%s%.9g", to->len ? "," : "", (double)v[i]);
}

static void take_outputs(struct local *l)
{
    const struct outputs *o = &l->outputs;
    for (size_t k = 0; k < o->n_items; k++) {
        const struct output *i = &o->items[k];
        struct answer *a = slot(l, i->job - 1);
        for (int32_t t = 0; t < i->n; t++)
            buf_printf(&a->ids, "%s%d", a->ids.len ? "," : "", o->ids[i->first_token + (size_t)t]);
        if (l->config->score)
            put_members(&a->logprobs, o->prompt_logprobs + i->first_prompt, (size_t)i->n_prompt_logprobs);
        else
            put_members(&a->logprobs, o->logprobs + i->first_token, (size_t)i->n);
        if (i->finish != FINISH_NONE)
            finish(a, i, l->config->score);
    }
    outputs_clear(&l->outputs);
}

static void answer_done(struct answer *a)
{
    buf_done(&a->ids);
    buf_done(&a->logprobs);
    free(a->text);
    *a = (struct answer){0};
}

static enum status write_answers(struct local *l, struct error *err)
{
    bool wrote = false;
    for (; l->first < l->next && slot(l, l->first)->done; l->first++, wrote = true) {
        struct answer *a = slot(l, l->first);
        fprintf(l->out, "%s\n", a->text);
        answer_done(a);
    }
    if (wrote && fflush(l->out) != 0)
        return error_errno(err, errno, "writing the answers");
    return STATUS_OK;
}

static enum status answer_all(struct local *l, struct error *err)
{
    for (;;) {
        enum status st = read_lines(l, err);
        if (st == STATUS_OK)
            st = engine_step(l->engine, &l->outputs, err);
        if (st != STATUS_OK)
            return st;
        take_outputs(l);
        st = write_answers(l, err);
        if (st != STATUS_OK)
            return st;
        if (l->ended && l->first == l->next)
            return STATUS_OK;
    }
}

static enum status open_weights(const struct local_config *c, struct device *d, struct model_config *model,
                                struct weights **ret, struct error *err)
{
    struct layout layout = {0};
    float *master = NULL;
    enum status st = model_config_read(c->model_dir, model, err);
    if (st != STATUS_OK)
        return st;
    st = layout_open(model, &layout, err);
    if (st == STATUS_OK)
        st = model_folder_read(c->model_dir, model, &layout, &master, err);
    if (st == STATUS_OK)
        st = weights_open(d, model, &layout, c->dtype, false, ret, err);
    if (st == STATUS_OK)
        weights_set(*ret, master);
    mem_free(master);
    layout_done(&layout);
    return st;
}

enum status local_run(const struct local_config *c, FILE *in, FILE *out, struct error *err)
{
    struct local *l = mem_must(1, sizeof *l);
    *l = (struct local){.config = c, .in = fileno(in), .out = out};
    outputs_init(&l->outputs);
    struct device *d = NULL;
    struct weights *w = NULL;
    struct model_config model;
    enum status st = device_open("cpu", c->isa, c->threads, &d, err);
    if (st == STATUS_OK)
        st = open_weights(c, d, &model, &w, err);
    if (st == STATUS_OK)
        st = engine_open(d, &model, c->dtype, &c->engine, &l->engine, err);
    if (st == STATUS_OK) {
        engine_set_weights(l->engine, w, 0);
        st = answer_all(l, err);
    }
    for (int i = 0; i < IN_FLIGHT; i++)
        answer_done(&l->answers[i]);
    engine_close(l->engine);
    weights_close(w);
    device_close(d);
    outputs_done(&l->outputs);
    buf_done(&l->input);
    free(l);
    return st;
}
