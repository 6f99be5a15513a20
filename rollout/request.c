// Requests out of JSON: see request.h. Any thread.
#include "rollout/request.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum status request_ids(const json_t *j, const char *what, int64_t max, int32_t **ret, int32_t *ret_n,
                        struct error *err)
{
    if (!json_is_array(j))
        return error_set(err, STATUS_TYPE, "%s: give an array of token ids", what);
    size_t n = json_array_size(j);
    if (n > (size_t)max)
        return error_set(err, STATUS_LIMIT, "%s: %zu ids, at most %lld", what, n, (long long)max);
    int32_t *ids = mem_must(n, sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(j, i);
        if (!json_is_integer(x) || json_integer_value(x) < 0 || json_integer_value(x) > INT32_MAX) {
            free(ids);
            return error_set(err, STATUS_TYPE, "%s[%zu] is not a token id", what, i);
        }
        ids[i] = (int32_t)json_integer_value(x);
    }
    *ret = ids;
    *ret_n = (int32_t)n;
    return STATUS_OK;
}

static enum status read_stop(const json_t *params, struct msg_sampling *s, struct error *err)
{
    const json_t *stop = json_object_get(params, "stop_token_ids");
    if (!stop || json_is_null(stop))
        return STATUS_OK;
    int32_t *ids = NULL;
    enum status st = request_ids(stop, "stop_token_ids", MSG_STOP_IDS, &ids, &s->n_stop, err);
    if (st != STATUS_OK)
        return st;
    memcpy(s->stop, ids, (size_t)s->n_stop * sizeof *ids);
    free(ids);
    return STATUS_OK;
}

enum status request_sampling(const json_t *params, const char *what, const struct request_style *style,
                             struct msg_sampling *ret, int64_t *ret_seed, struct error *err)
{
    if (!json_is_object(params))
        return error_set(err, STATUS_TYPE, "%s: give an object", what);
    struct msg_sampling s = {0};
    double temperature, top_p, min_p;
    int64_t top_k, max_new, min_new, seed;
    enum status st = json_get_real(params, "temperature", false, 1, 0, 100, what, &temperature, err);
    if (st == STATUS_OK)
        st = json_get_real(params, "top_p", false, 1, 0, 1, what, &top_p, err);
    if (st == STATUS_OK)
        st = json_get_real(params, "min_p", false, 0, 0, 1, what, &min_p, err);
    if (st == STATUS_OK)
        st = json_get_int(params, "top_k", false, -1, -1, INT32_MAX, what, &top_k, err);
    if (st == STATUS_OK)
        st = json_get_int(params, style->max_new, false, 128, 0, MSG_TOKENS_MAX, what, &max_new, err);
    if (st == STATUS_OK)
        st = json_get_int(params, style->min_new, false, 0, 0, MSG_TOKENS_MAX, what, &min_new, err);
    if (st == STATUS_OK)
        st = json_get_int(params, style->seed, false, style->default_seed, 0, INT64_MAX, what, &seed, err);
    if (st == STATUS_OK)
        st = json_get_bool(params, "ignore_eos", false, false, what, &s.ignore_eos, err);
    if (st == STATUS_OK)
        st = read_stop(params, &s, err);
    if (st != STATUS_OK)
        return st;
    s.temperature = (float)temperature;
    s.top_p = (float)top_p;
    s.min_p = (float)min_p;
    s.top_k = top_k < 0 ? 0 : (int32_t)top_k; // SGLang writes -1 for off
    s.max_new = (int32_t)max_new;
    s.min_new = (int32_t)min_new;
    *ret = s;
    *ret_seed = seed;
    return STATUS_OK;
}
