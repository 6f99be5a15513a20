// The smallest ooze-task/1 service (docs/protocols.md) in C: copy it, change prompt() and the grading. Built as task-template.
#include "net/service.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRAIN 100000 // prompts of each split
#define EVAL  1000

// The same (split, index) gives the same prompt; held-out prompts are not training prompts. Returns the answer.
static long prompt(bool eval, long index, char *ret, size_t n)
{
    long x = index + (eval ? TRAIN : 0);
    snprintf(ret, n, "What is %ld + %ld? Answer with the number only.", x / 317, x % 317);
    return x / 317 + x % 317;
}

static void reply(struct http_request *r, json_t *j)
{
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    reply(r, json_pack("{s:s, s:s, s:s, s:s, s:{s:i, s:i}, s:i, s:{s:i, s:i}}", "status", "healthy",
                       "protocol", "ooze-task/1", "name", "template", "mode", "env", "splits", "train", TRAIN,
                       "eval", EVAL, "max_turns", 1, "reward", "min", 0, "max", 1));
}

static void on_create(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *body;
    char text[128], id[64];
    if (!http_request_json(r, &body)) // has answered 400
        return;
    const char *split = json_string_value(json_object_get(body, "split"));
    bool eval = split && !strcmp(split, "eval");
    long index = (long)json_integer_value(json_object_get(body, "index"));
    prompt(eval, index, text, sizeof text);
    snprintf(id, sizeof id, "%s-%ld", eval ? "eval" : "train", index); // the whole state: restart at will
    json_decref(body);
    reply(r,
          json_pack("{s:s, s:[{s:s, s:s}]}", "episode_id", id, "messages", "role", "user", "content", text));
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *body;
    char text[128];
    const char *id = http_request_capture(r, "id"), *dash = strchr(id, '-');
    if (!http_request_json(r, &body))
        return;
    long want = prompt(!strncmp(id, "eval", 4), dash ? atol(dash + 1) : 0, text, sizeof text);
    const char *said = json_string_value(json_object_get(json_object_get(body, "message"), "content"));
    double reward = said && atol(said) == want ? 1 : 0;
    json_decref(body);
    reply(r, json_pack("{s:[], s:b, s:f}", "messages", "done", 1, "reward", reward));
}

static void on_delete(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 204, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    static const struct http_route routes[] = {
        {"GET", "/task", on_task},
        {"GET", "/health", on_task}, // being able to describe itself is its health
        {"POST", "/episodes", on_create},
        {"POST", "/episodes/{id}/step", on_step},
        {"DELETE", "/episodes/{id}", on_delete}};
    return service_main(argc, argv, "template", routes, sizeof routes / sizeof *routes, NULL);
}
