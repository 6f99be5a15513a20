// Sessions: see session.h for the invariants. Runs on the loop's thread, called by episode.c only.
#include "orchestrator/session.h"

#include <math.h>
#include <string.h>

enum status session_open(struct session *s, const struct chat *c, json_t *messages, json_t *tools,
                         struct error *err)
{
    struct session out = {.chat = c, .version_min = -1, .version_max = -1};
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return error_set(err, STATUS_INVALID, "messages: expected a non-empty array");
    if (tools && json_is_null(tools))
        tools = NULL;
    if (tools && !json_is_array(tools))
        return error_set(err, STATUS_INVALID, "tools: expected an array");
    if (tools && json_array_size(tools) == 0)
        tools = NULL;
    enum status rc = chat_render(c, messages, tools, NULL, true, &out.tokens, err);
    if (!rc && out.tokens.n == 0)
        rc = error_set(err, STATUS_INVALID, "messages render to no token at all");
    if (rc) {
        tokens_done(&out.tokens);
        return rc;
    }
    memset(out.tokens.mask, 0,
           out.tokens.n); // earlier assistant turns of a prompt were not sampled by this policy
    out.messages = json_copy(messages);
    out.tools = tools ? json_incref(tools) : NULL;
    out.turn_at = (int32_t)out.tokens.n;
    out.open_turn = true;
    *s = out;
    return STATUS_OK;
}

void session_close(struct session *s)
{
    json_decref(s->messages);
    json_decref(s->tools);
    tokens_done(&s->tokens);
    *s = (struct session){0};
}

enum status session_sampled(struct session *s, const int32_t *ids, const float *logprobs, int32_t n,
                            const struct msg_span *spans, int32_t n_spans, struct error *err)
{
    if (!s->open_turn || (int32_t)s->tokens.n != s->turn_at)
        return error_set(err, STATUS_INVALID, "tokens of a turn that was not asked for");
    if (n <= 0)
        return error_set(err, STATUS_INVALID, "a turn without tokens");
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || !isfinite(logprobs[i]) || logprobs[i] > 1e-3f)
            return error_set(err, STATUS_INVALID, "sampled token %d: id %d with logprob %g", i, ids[i],
                             (double)logprobs[i]);
    int32_t at = 0;
    int64_t version = -1;
    for (int32_t i = 0; i < n_spans; i++) {
        if (spans[i].start != at || spans[i].end <= at || spans[i].version < version)
            return error_set(
                err, STATUS_INVALID, "version span %d: version %lld at [%d, %d) after version %lld at %d", i,
                (long long)spans[i].version, spans[i].start, spans[i].end, (long long)version, at);
        at = spans[i].end;
        version = spans[i].version;
    }
    if (at != n)
        return error_set(err, STATUS_INVALID, "version spans cover %d of %d sampled tokens", at, n);
    tokens_append(&s->tokens, ids, (size_t)n, 1);
    s->n_sampled += n;
    if (s->version_min < 0 || spans[0].version < s->version_min)
        s->version_min = spans[0].version;
    if (version > s->version_max)
        s->version_max = version;
    s->open_turn = false;
    return STATUS_OK;
}

void session_parse(struct session *s, const char *id_prefix, struct toolcall_parsed *ret)
{
    chat_parse(s->chat, s->tokens.ids + s->turn_at, s->tokens.n - (size_t)s->turn_at, s->tools, id_prefix,
               ret);
    json_array_append(s->messages, ret->message);
}

enum status session_tail(struct session *s, const json_t *messages, int32_t *ret_from, struct error *err)
{
    if (!json_is_array(messages))
        return error_set(err, STATUS_INVALID, "messages: expected an array");
    size_t held = json_array_size(s->messages), from = s->tokens.n;
    json_array_extend(s->messages, (json_t *)messages);
    bool fork = chat_tail_rewrites(s->chat, s->messages, held, NULL);
    enum status rc;
    if (fork) {
        struct tokens fresh = {0};
        rc = chat_render(s->chat, s->messages, s->tools, NULL, true, &fresh, err);
        if (rc) {
            tokens_done(&fresh);
            return rc;
        }
        memset(fresh.mask, 0, fresh.n);
        tokens_done(&s->tokens);
        s->tokens = fresh;
        s->segment++;
        from = 0;
    } else {
        rc = chat_render_tail(s->chat, s->messages, held, s->tools, NULL, s->tokens.ids[from - 1], true,
                              &s->tokens, err);
        if (rc)
            return rc;
        memset(s->tokens.mask + from, 0, s->tokens.n - from);
    }
    s->turn_at = (int32_t)s->tokens.n;
    s->open_turn = true;
    *ret_from = (int32_t)from;
    return STATUS_OK;
}

enum status session_restore(struct session *s, int32_t segment, int32_t offset, const int32_t *ids, int32_t n,
                            bool sampled, struct error *err)
{
    if (segment != s->segment && segment != s->segment + 1)
        return error_set(err, STATUS_CORRUPT, "segment %d follows segment %d", segment, s->segment);
    if (segment > s->segment) {
        tokens_clear(&s->tokens);
        s->segment = segment;
    }
    if (offset != (int32_t)s->tokens.n)
        return error_set(err, STATUS_CORRUPT, "piece at %d where the segment ends at %zu", offset,
                         s->tokens.n);
    if (sampled) {
        s->turn_at = offset;
        s->n_sampled += n;
    }
    tokens_append(&s->tokens, ids, (size_t)n, sampled);
    if (!sampled)
        s->turn_at = (int32_t)s->tokens.n;
    s->open_turn = !sampled;
    return STATUS_OK;
}

void session_restore_message(struct session *s, json_t *message)
{
    json_array_append(s->messages, message);
}
