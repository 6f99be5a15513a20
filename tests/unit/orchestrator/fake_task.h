// A task service of the loop's tests: two turns, a reward that is a function of what was said.
#ifndef TESTS_FAKE_TASK_H
#define TESTS_FAKE_TASK_H

#include <stdarg.h>

#include "fake_peer.h"
#include "net/service.h"

static int n_episodes;
static struct kept {
    char key[96], reply[512];
} kept[KEPT];
static int n_kept;
static bool deleted[KEPT]; // [episode]

static void reply_kept(struct http_request *r, const char *fmt, ...)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    va_list ap;
    REQUIRE(key && n_kept < KEPT);
    struct kept *k = &kept[n_kept++];
    snprintf(k->key, sizeof k->key, "%s", key);
    va_start(ap, fmt);
    vsnprintf(k->reply, sizeof k->reply, fmt, ap);
    va_end(ap);
    http_reply(r, 200, "application/json", k->reply, strlen(k->reply));
}

static bool answered_before(struct http_request *r)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    for (int i = 0; key && i < n_kept; i++)
        if (strcmp(kept[i].key, key) == 0) {
            int n;
            if (sscanf(kept[i].reply, "{\"episode_id\":\"e %d/", &n) == 1)
                REQUIRE(!deleted[n]); // whoever has ended an episode does not create it again
            http_reply(r, 200, "application/json", kept[i].reply, strlen(kept[i].reply));
            return true;
        }
    return false;
}

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    const char *text = "{\"protocol\":\"ooze-task/"
                       "1\",\"name\":\"pair\",\"mode\":\"env\",\"description\":\"\",\"splits\":{\"train\":50,"
                       "\"eval\":5},\"max_turns\":4,\"tools\":[],\"reward\":{\"min\":0,\"max\":1}}";
    http_reply(r, 200, "application/json", text, strlen(text));
}

static void on_health(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 200, "application/json", "{\"status\":\"healthy\"}", 20);
}

static void on_create(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j;
    if (answered_before(r) || !http_request_json(r, &j))
        return;
    reply_kept(r, "{\"episode_id\":\"e %d/%d\",\"messages\":[{\"role\":\"user\",\"content\":\"p%lld\"}]}",
               ++n_episodes, (int)getpid(), (long long)json_integer_value(json_object_get(j, "index")));
    json_decref(j);
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j;
    int n = 0, pid = 0;
    const char *key = http_request_header(r, "Idempotency-Key");
    if (!http_request_json(r, &j))
        return;
    if (faults == OTHER_STOP) { // and a service with work in hand when the orchestrator is killed
        REQUIRE(strcmp(json_string_value(json_object_get(j, "finish_reason")), "stop") == 0);
        usleep(3000);
    }
    if (answered_before(r)) {
        json_decref(j);
        return;
    }
    const json_t *message = json_object_get(j, "message");
    const char *content = json_string_value(json_object_get(message, "content"));
    REQUIRE(strcmp(json_string_value(json_object_get(message, "role")), "assistant") == 0 && content && key);
    bool second = strcmp(strrchr(key, '-'), "-1") == 0;
    if (sscanf(http_request_capture(r, "id"), "e %d/%d", &n, &pid) != 2 || pid != (int)getpid())
        http_reply_error(r, 404, NULL, "no such episode");
    else if (second && n % 17 == 0)
        reply_kept(r, "{\"error\":{\"kind\":\"environment\",\"message\":\"the sandbox's host went away\"}}");
    else if (second)
        reply_kept(r, "{\"messages\":[],\"done\":true,\"reward\":%d}",
                   (int)(strlen(content) + (unsigned char)content[0]) % 2);
    else
        reply_kept(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"more\"}],\"done\":false}");
    json_decref(j);
}

static void on_delete(void *ctx, struct http_request *r)
{
    int n, pid;
    (void)ctx;
    if (sscanf(http_request_capture(r, "id"), "e %d/%d", &n, &pid) == 2 && pid == (int)getpid())
        deleted[n] = true;
    http_reply(r, 204, NULL, NULL, 0);
}

static int task_main(const char *file)
{
    static const struct http_route routes[] = {{"GET", "/task", on_task},
                                               {"GET", "/health", on_health},
                                               {"POST", "/episodes", on_create},
                                               {"POST", "/episodes/{id}/step", on_step},
                                               {"DELETE", "/episodes/{id}", on_delete}};
    char port_file[300], name[] = "pair";
    snprintf(port_file, sizeof port_file, "%s/tasks/%s.port", dir, file);
    char *argv[] = {name, (char[]){"--port"}, (char[]){"0"}, (char[]){"--port-file"}, port_file, NULL};
    return service_main(5, argv, name, routes, 5, NULL);
}

#endif
