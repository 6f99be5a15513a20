// What the quickstart's task services share: the episodes under way, with the last reply of each kept for a repeated step.
#ifndef EXAMPLES_TASKS_EPISODES_H
#define EXAMPLES_TASKS_EPISODES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "net/service.h"

#define EPISODES_MAX 65536 // power of two

struct episode {
    uint64_t id; // 0 = free; unique within this process
    uint32_t prompt;
    int32_t calls;
    char key[128]; // Idempotency-Key of the last step
    json_t *reply; // and what it was answered
};

struct episodes {
    struct episode slots[EPISODES_MAX];
    uint64_t next;
    uint64_t instance; // of this process, so that an id of an earlier one is not found
};

static inline void episode_end(struct episode *e)
{
    if (e->reply)
        json_decref(e->reply);
    *e = (struct episode){0};
}

// Takes the slot of the id; the oldest unfinished episode of 65,536 gives way.
static inline struct episode *episode_new(struct episodes *all, uint32_t prompt)
{
    uint64_t id = ++all->next;
    struct episode *e = &all->slots[id % EPISODES_MAX];
    episode_end(e);
    *e = (struct episode){.id = id, .prompt = prompt};
    return e;
}

// Answers 404 itself when there is none.
static inline struct episode *episode_find(struct episodes *all, struct http_request *r)
{
    const char *text = http_request_capture(r, "id");
    unsigned long long instance = 0, id = 0;
    if (sscanf(text, "%llx-%llu", &instance, &id) == 2 && instance == all->instance && id &&
        all->slots[id % EPISODES_MAX].id == id)
        return &all->slots[id % EPISODES_MAX];
    http_reply_error(r, 404, NULL, "no episode %s here (ended, or of an earlier process)", text);
    return NULL;
}

static inline json_t *episode_id(const struct episodes *all, const struct episode *e)
{
    char text[64];
    snprintf(text, sizeof text, "%llx-%llu", (unsigned long long)all->instance, (unsigned long long)e->id);
    return json_string(text);
}

// A step that carries the Idempotency-Key of the one before is answered as that one was; true when it was.
static inline bool episode_repeat(struct episode *e, struct http_request *r)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    if (!key || !e->reply || strcmp(key, e->key) != 0)
        return false;
    http_reply_json(r, 200, e->reply);
    return true;
}

// Answers with reply (taken over) and remembers it under the request's key.
static inline void episode_reply(struct episode *e, struct http_request *r, json_t *reply)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    if (e->reply)
        json_decref(e->reply);
    e->reply = reply;
    snprintf(e->key, sizeof e->key, "%s", key ? key : "");
    http_reply_json(r, 200, reply);
}

// The body of POST /episodes → split and index; answers 400 itself when they are wrong.
static inline bool episode_request(struct http_request *r, uint32_t n_train, uint32_t n_eval, bool *ret_eval,
                                   uint32_t *ret_index)
{
    json_t *body;
    struct error err;
    const char *split;
    int64_t index;
    if (!http_request_json(r, &body))
        return false;
    bool ok = !json_get_string(body, "split", true, NULL, "episode", &split, &err);
    *ret_eval = ok && strcmp(split, "eval") == 0;
    ok = ok && !json_get_int(body, "index", true, 0, 0, INT64_MAX, "episode", &index, &err);
    json_decref(body);
    if (!ok) {
        http_reply_error(r, 400, NULL, "%s", err.text);
        return false;
    }
    if (index >= (*ret_eval ? n_eval : n_train)) {
        http_reply_error(r, 400, NULL, "index %lld is beyond the %s split", (long long)index,
                         *ret_eval ? "eval" : "train");
        return false;
    }
    *ret_index = (uint32_t)index;
    return true;
}

#endif
