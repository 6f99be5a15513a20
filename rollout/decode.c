// Running what was scheduled: one forward pass, logits of the rows that need them, sampling, and what becomes of each
// sequence. Runs on the compute thread.
//
// Logits exist for logit_rows rows at a time. Rows to be sampled go first, then prompt tokens to be scored (rescoring, the
// HTTP API's input logprobs), by the kernels' logprob op, which is also the trainer's.
#include <assert.h>
#include <string.h>

#include "rollout/sequence.h"

static void gather_logits(struct engine *e, const struct row *rows, int32_t n)
{
    int64_t c = e->model.hidden;
    for (int32_t i = 0; i < n; i++)
        memcpy(e->gathered + i * c, e->hidden + rows[i].row * c, (size_t)c * sizeof(float));
    model_logits(e->weights, n, e->gathered, e->logits);
}

static void note_span(struct engine *e, struct sequence *s, int32_t index)
{
    if (s->n_spans > 0 && s->spans[s->n_spans - 1].version == e->version) {
        s->spans[s->n_spans - 1].end = index + 1;
        return;
    }
    if (s->n_spans == s->cap_spans) {
        s->cap_spans = s->cap_spans ? 2 * s->cap_spans : 2;
        s->spans = mem_grow(s->spans, (size_t)s->cap_spans, sizeof *s->spans);
    }
    s->spans[s->n_spans++] = (struct msg_span){.version = e->version, .start = index, .end = index + 1};
}

static bool is_stop(const struct sequence *s, int32_t id)
{
    for (int32_t i = 0; i < s->n_stop; i++)
        if (s->stop[i] == id)
            return true;
    return false;
}

static void take_token(struct engine *e, struct sequence *s, const struct sampler_row *r)
{
    if (r->token < 0) {
        sequence_end(e, s, FINISH_ERROR, "the model gave logits that are not finite");
        return;
    }
    int32_t index = s->n_ids - s->n_prompt;
    s->ids[s->n_ids++] = r->token;
    s->logprobs[index] = r->logprob;
    note_span(e, s, index);
    e->stats.generated_tokens++;
    if (is_stop(s, r->token))
        sequence_end(e, s, FINISH_STOP, NULL);
    else if (index + 1 == s->sampling.max_new)
        sequence_end(e, s, FINISH_LENGTH, NULL);
}

static void sample_block(struct engine *e, const struct row *rows, int32_t n)
{
    gather_logits(e, rows, n);
    for (int32_t i = 0; i < n; i++) {
        struct sequence *s = rows[i].seq;
        int32_t index = s->n_ids - s->n_prompt;
        bool early = index < s->sampling.min_new;
        e->sampled[i] = (struct sampler_row){
            .sampling = &s->sampling,
            .inv_temp = s->inv_temp,
            .uniform = rng_token_uniform(&s->key, (uint32_t)s->n_ids),
            .n_forbidden = early ? s->n_stop : 0,
            .forbidden = s->stop,
            .n_top = s->n_top,
            .top_ids = s->n_top ? s->top_ids + (int64_t)index * s->n_top : NULL,
            .top_logprobs = s->n_top ? s->top_logprobs + (int64_t)index * s->n_top : NULL,
        };
    }
    sampler_run(e->sampler, n, e->logits, e->sampled);
    for (int32_t i = 0; i < n; i++)
        take_token(e, rows[i].seq, &e->sampled[i]);
}

static void score_block(struct engine *e, const struct row *rows, int32_t n)
{
    gather_logits(e, rows, n);
    for (int32_t i = 0; i < n; i++) {
        e->score_inv_temp[i] = rows[i].seq->inv_temp;
        e->score_target[i] = rows[i].target;
    }
    int64_t v = e->model.vocab;
    e->d->k->logprob(e->d, n, v, e->logits, v, e->score_inv_temp, e->score_target, e->score_logprob,
                     e->score_lse, NULL);
    for (int32_t i = 0; i < n; i++) {
        struct sequence *s = rows[i].seq;
        s->prompt_logprobs[s->n_prompt_scored++] = e->score_logprob[i]; // rows of a sequence come in order
    }
}

enum status decode_step(struct engine *e, struct error *err)
{
    const struct batch batch = {
        .n_rows = e->n_rows, .n_seqs = e->n_seqs, .ids = e->ids, .pos = e->pos, .seqs = e->attn};
    enum status st = model_forward(e->weights, e->kv, &batch, &e->step, e->hidden, err);
    if (st != STATUS_OK)
        return st;
    for (int32_t i = 0; i < e->n_seqs; i++)
        sequence_advance(e, e->members[i], e->attn[i].n_rows);
    for (int32_t i = 0, n; i < e->n_to_score; i += n) {
        n = e->n_to_score - i < e->logit_rows ? e->n_to_score - i : e->logit_rows;
        score_block(e, e->to_score + i, n);
    }
    for (int32_t i = 0, n; i < e->n_to_sample; i += n) {
        n = e->n_to_sample - i < e->logit_rows ? e->n_to_sample - i : e->logit_rows;
        sample_block(e, e->to_sample + i, n);
    }
    for (int32_t i = 0; i < e->n_seqs; i++) { // jobs that only wanted their prefix scored
        struct sequence *s = e->members[i];
        if (s->state == SEQ_RUNNING && s->sampling.max_new == 0 && s->n_computed == s->n_ids)
            sequence_end(e, s, FINISH_LENGTH, NULL);
    }
    return STATUS_OK;
}

static void flush_sequence(struct sequence *s, struct outputs *out)
{
    int32_t from = s->n_flushed, to = s->n_ids - s->n_prompt;
    struct output *item = outputs_add(out, s->job, from);
    item->prompt_tokens = s->n_prompt;
    item->cached_tokens = s->n_cached;
    outputs_add_tokens(out, s->ids + s->n_prompt + from, s->logprobs + from, to - from);
    if (s->n_top > 0)
        outputs_add_top(out, s->top_ids + (int64_t)from * s->n_top,
                        s->top_logprobs + (int64_t)from * s->n_top, to - from, s->n_top);
    for (int32_t i = 0; i < s->n_spans; i++) {
        const struct msg_span *p = &s->spans[i];
        if (p->end > from)
            outputs_add_span(out, p->version, p->start > from ? p->start : from, p->end);
    }
    outputs_add_kv(out, s->kv, s->n_kv);
    s->n_kv = 0;
    s->n_flushed = to;
    if (s->state == SEQ_FINISHED) {
        if (s->prompt_logprobs && s->n_prompt_scored == s->n_prompt)
            outputs_add_prompt(out, s->prompt_logprobs, s->n_prompt);
        outputs_finish(out, s->finish, s->error);
    }
}

void decode_flush(struct engine *e, struct outputs *out)
{
    for (int32_t i = 0; i < e->n_running; i++) {
        struct sequence *s = e->running[i];
        if (s->n_ids - s->n_prompt - s->n_flushed >= s->flush_tokens)
            flush_sequence(s, out);
    }
    for (int32_t i = 0; i < e->n_finished; i++)
        flush_sequence(e->finished[i], out);
}
