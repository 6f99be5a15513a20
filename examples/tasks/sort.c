// Task service "sort" of the quickstart (ooze-task/1): one turn, a rule verifier. See sort.h for the task, and template/ for the
// smallest service to copy.
#include "examples/tasks/sort.h"

#include <time.h>

#include "examples/tasks/episodes.h"
#include "examples/tasks/space.h"

static struct space space;
static struct episodes all;

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:s, s:{s:I, s:I}, s:i, s:[], s:{s:i, s:i}}", "protocol", "ooze-task/1",
                  "name", "sort", "mode", "env", "description", "Sort six letters.", "splits", "train",
                  (json_int_t)space_size(&space, false), "eval", (json_int_t)space_size(&space, true),
                  "max_turns", 1, "tools", "reward", "min", 0, "max", 1);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_health(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 200, "application/json", "{\"status\":\"healthy\"}", 20);
}

static void on_create(void *ctx, struct http_request *r)
{
    (void)ctx;
    bool eval;
    uint32_t index;
    char letters[SORT_LETTERS + 1], prompt[SORT_LETTERS + 3];
    if (!episode_request(r, space_size(&space, false), space_size(&space, true), &eval, &index))
        return;
    struct episode *e = episode_new(&all, space_prompt(&space, eval, index));
    sort_letters(e->prompt, letters);
    snprintf(prompt, sizeof prompt, "S%s=", letters);
    json_t *j = json_pack("{s:o, s:[{s:s, s:s}]}", "episode_id", episode_id(&all, e), "messages", "role",
                          "user", "content", prompt);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *body;
    char answer[SORT_LETTERS + 1];
    struct episode *e = episode_find(&all, r);
    if (!e || episode_repeat(e, r) || !http_request_json(r, &body))
        return;
    const char *content = json_string_value(json_object_get(json_object_get(body, "message"), "content"));
    sort_answer(e->prompt, answer);
    bool right = content && strcmp(content, answer) == 0;
    json_decref(body);
    episode_reply(e, r, json_pack("{s:[], s:b, s:f}", "messages", "done", 1, "reward", right ? 1.0 : 0.0));
}

static void on_delete(void *ctx, struct http_request *r)
{
    (void)ctx;
    struct episode *e = episode_find(&all, r);
    if (!e)
        return;
    episode_end(e);
    http_reply(r, 204, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    static const struct http_route routes[] = {
        {"GET", "/task", on_task},
        {"GET", "/health", on_health},
        {"POST", "/episodes", on_create},
        {"POST", "/episodes/{id}/step", on_step},
        {"DELETE", "/episodes/{id}", on_delete},
    };
    space_init(&space, SORT_SPACE, sort_is_prompt);
    all.instance = (uint64_t)time(NULL) << 20 ^ (uint64_t)clock();
    return service_main(argc, argv, "sort", routes, sizeof routes / sizeof routes[0], NULL);
}
