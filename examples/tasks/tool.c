// Task service "tool" of the quickstart (ooze-task/1): several turns with a calculator. See calc.h for the task.
#include <time.h>

#include "examples/tasks/calc.h"
#include "examples/tasks/episodes.h"
#include "examples/tasks/space.h"

static struct space space;
static struct episodes all;

static json_t *tools(void)
{
    return json_pack("[{s:s, s:{s:s, s:s, s:{s:s, s:{s:{s:s}}, s:[s]}}}]", "type", "function", "function",
                     "name", "calc", "description", "Adds or subtracts two numbers.", "parameters", "type",
                     "object", "properties", "input", "type", "string", "required", "input");
}

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:{s:I, s:I}, s:i, s:o, s:{s:i, s:i}}", "protocol",
                          "ooze-task/1", "name", "tool", "mode", "env", "description",
                          "Work out a sum of three numbers with a calculator for two.", "splits", "train",
                          (json_int_t)space_size(&space, false), "eval", (json_int_t)space_size(&space, true),
                          "max_turns", CALC_MAX_CALLS + 1, "tools", tools(), "reward", "min", 0, "max", 1);
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
    char prompt[32];
    if (!episode_request(r, space_size(&space, false), space_size(&space, true), &eval, &index))
        return;
    struct episode *e = episode_new(&all, space_prompt(&space, eval, index));
    struct calc p = calc_of(e->prompt);
    snprintf(prompt, sizeof prompt, "T%d%c%d%c%d=", p.a, p.op1, p.b, p.op2, p.c);
    json_t *j = json_pack("{s:o, s:[{s:s, s:s}], s:o}", "episode_id", episode_id(&all, e), "messages", "role",
                          "user", "content", prompt, "tools", tools());
    http_reply_json(r, 200, j);
    json_decref(j);
}

// One call → the calculator's answer. Everything that the policy gets wrong is an ordinary observation or reward 0.
static json_t *answer_call(struct episode *e, const json_t *call)
{
    struct error err;
    json_t *args = NULL;
    char result[32] = "E";
    if (++e->calls > CALC_MAX_CALLS)
        return json_pack("{s:[], s:b, s:f}", "messages", "done", 1, "reward", 0.0);
    const char *text = json_string_value(json_object_get(json_object_get(call, "function"), "arguments"));
    if (text && !json_parse(text, strlen(text), "arguments", &args, &err)) {
        const char *input = json_string_value(json_object_get(args, "input"));
        if (input)
            calc_tool(input, result, sizeof result);
        json_decref(args);
    }
    const char *id = json_string_value(json_object_get(call, "id"));
    return json_pack("{s:[{s:s, s:s, s:s}], s:b}", "messages", "role", "tool", "tool_call_id", id ? id : "",
                     "content", result, "done", 0);
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *body;
    struct episode *e = episode_find(&all, r);
    if (!e || episode_repeat(e, r) || !http_request_json(r, &body))
        return;
    const json_t *message = json_object_get(body, "message");
    const json_t *call = json_array_get(json_object_get(message, "tool_calls"), 0);
    if (call) {
        episode_reply(e, r, answer_call(e, call));
    } else {
        char want[16];
        const char *content = json_string_value(json_object_get(message, "content"));
        snprintf(want, sizeof want, "%d", calc_of(e->prompt).result);
        bool right = content && strcmp(content, want) == 0;
        episode_reply(e, r,
                      json_pack("{s:[], s:b, s:f, s:{s:i}}", "messages", "done", 1, "reward",
                                right ? 1.0 : 0.0, "metrics", "calls", e->calls));
    }
    json_decref(body);
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
    space_init(&space, CALC_SPACE, calc_is_prompt);
    all.instance = (uint64_t)time(NULL) << 20 ^ (uint64_t)clock();
    return service_main(argc, argv, "tool", routes, sizeof routes / sizeof routes[0], NULL);
}
