// A task service for the process tests: rewards that differ between answers, and, when asked, every kind of nonsense.
//
//   task_fake MODE[:DELAY_MS] [service options]      steps that are answered late pace a run
//
//     good         one turn; the reward is the share of even bytes in the answer
//     turns        three turns of that
//     html         GET /task is no JSON
//     flaky        the first attempt at every episode fails, each in one of the first five ways below; later attempts are good
//     outage       for 1.5 s from the first step on, steps are answered by 500 or never and GET /health by 500; then all is good
//     mortal       the first attempts at some prompts end the service, each time they are made
//     bad-json, nan, string, no-reward, grader, http500, hang    every step fails in this way
// One thread; an episode's id carries its whole state (attempt and turn), so that a restart loses nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "net/loop.h"
#include "net/service.h"

static const char *const ways[] = {"bad-json", "nan", "string", "no-reward", "grader", "http500", "hang"};
#define N_NONSENSE 5 // of them, the first
#define OUTAGE_MS  1500

static char mode[32];
static int delay_ms;
static int64_t first_step_ms;

static void reply(struct http_request *r, json_t *j)
{
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    if (!strcmp(mode, "html")) {
        http_reply(r, 200, "text/html", "<html>", 6);
        return;
    }
    reply(r, json_pack("{s:s, s:s, s:s, s:{s:i, s:i}, s:i, s:{s:i, s:i}}", "protocol", "ooze-task/1", "name",
                       "fake", "mode", "env", "splits", "train", 100000, "eval", 1000, "max_turns", 3,
                       "reward", "min", 0, "max", 1));
}

static bool ill(void)
{
    return !strcmp(mode, "outage") && first_step_ms &&
           clock_mono_ms(clock_system()) - first_step_ms < OUTAGE_MS;
}

static void on_health(void *ctx, struct http_request *r)
{
    (void)ctx;
    if (ill()) {
        http_reply_error(r, 500, NULL, "ill");
        return;
    }
    reply(r, json_pack("{s:s}", "status", "healthy"));
}

static void on_create(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *body;
    char id[96], text[64];
    static unsigned way; // of the flaky mode, round and round
    if (!http_request_json(r, &body))
        return;
    long long index = json_integer_value(json_object_get(body, "index")),
              attempt = json_integer_value(json_object_get(body, "attempt"));
    bool eval = !strcmp(json_string_value(json_object_get(body, "split")), "eval");
    json_decref(body);
    snprintf(id, sizeof id, "%s-%lld-%lld-%u", eval ? "eval" : "train", index, attempt, way++ % N_NONSENSE);
    snprintf(text, sizeof text, "Q%lld=", index);
    reply(r,
          json_pack("{s:s, s:[{s:s, s:s}]}", "episode_id", id, "messages", "role", "user", "content", text));
}

// Whoever waited has gone, or this service ends.
static void on_gone(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 500, NULL, NULL, 0); // goes nowhere, and ends the request
}

static void misbehave(const char *way, struct http_request *r)
{
    static const char bad[] = "{\"messages\": [], \"done\": tr",
                      nan[] = "{\"messages\":[],\"done\":true,\"reward\":NaN}",
                      string[] = "{\"messages\":[],\"done\":true,\"reward\":\"high\"}",
                      none[] = "{\"messages\":[],\"done\":true}",
                      grader[] = "{\"error\":{\"kind\":\"grader\",\"message\":\"the judge is ill\"}}";
    const char *body = !strcmp(way, "bad-json")    ? bad
                       : !strcmp(way, "nan")       ? nan
                       : !strcmp(way, "string")    ? string
                       : !strcmp(way, "no-reward") ? none
                       : !strcmp(way, "grader")    ? grader
                                                   : NULL;
    if (body)
        http_reply(r, 200, "application/json", body, strlen(body));
    else if (!strcmp(way, "http500"))
        http_reply_error(r, 500, NULL, "boom");
    else // hang
        http_request_on_disconnect(r, on_gone, NULL);
}

static void step(struct http_request *r)
{
    json_t *body;
    char split[8];
    long long index, attempt;
    unsigned way;
    if (sscanf(http_request_capture(r, "id"), "%7[a-z]-%lld-%lld-%u", split, &index, &attempt, &way) != 4 ||
        way >= N_NONSENSE) {
        http_reply_error(r, 404, NULL, "no such episode");
        return;
    }
    if (!first_step_ms)
        first_step_ms = clock_mono_ms(clock_system());
    if (!strcmp(mode, "flaky") && attempt == 0 && strcmp(split, "eval") != 0) {
        misbehave(ways[way], r);
        return;
    }
    if (!strcmp(mode, "mortal") && attempt == 0 && index % 8 == 3 && strcmp(split, "eval") != 0)
        _exit(9);
    if (ill()) {
        misbehave(index % 2 ? "http500" : "hang", r);
        return;
    }
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        if (!strcmp(mode, ways[i])) {
            misbehave(mode, r);
            return;
        }
    if (!http_request_json(r, &body))
        return;
    const char *said = json_string_value(json_object_get(json_object_get(body, "message"), "content"));
    size_t n = said ? strlen(said) : 0, even = 0;
    for (size_t i = 0; i < n; i++)
        even += said[i] % 2 == 0;
    json_decref(body);
    // Whether it goes on is judged by the answer itself: no state, and the same when repeated.
    if (!strcmp(mode, "turns") && n % 3 != 0) {
        reply(r,
              json_pack("{s:[{s:s, s:s}], s:b}", "messages", "role", "user", "content", "more=", "done", 0));
        return;
    }
    reply(r,
          json_pack("{s:[], s:b, s:f}", "messages", "done", 1, "reward", n ? (double)even / (double)n : 0.0));
}

struct late {
    struct http_request *request;
    struct loop_timer *timer;
};

static void on_late(void *ctx)
{
    struct late *l = ctx;
    step(l->request);
    loop_timer_close(l->timer);
    free(l);
}

static void on_late_gone(void *ctx, struct http_request *r)
{
    struct late *l = ctx;
    on_gone(NULL, r);
    loop_timer_close(l->timer);
    free(l);
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    if (!delay_ms) {
        step(r);
        return;
    }
    struct late *l = mem_must(1, sizeof *l);
    l->request = r;
    l->timer = loop_timer_open(http_request_loop(r), on_late, l);
    loop_timer_set(l->timer, delay_ms, 0);
    http_request_on_disconnect(r, on_late_gone, l);
}

static void on_delete(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 204, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    static const struct http_route routes[] = {{"GET", "/task", on_task},
                                               {"GET", "/health", on_health},
                                               {"POST", "/episodes", on_create},
                                               {"POST", "/episodes/{id}/step", on_step},
                                               {"DELETE", "/episodes/{id}", on_delete}};
    if (argc < 2 || sscanf(argv[1], "%31[a-z0-9-]:%d", mode, &delay_ms) < 1) {
        fprintf(stderr, "usage: task_fake MODE[:DELAY_MS] [service options]\n");
        return 2;
    }
    argv[1] = argv[0];
    return service_main(argc - 1, argv + 1, "fake", routes, sizeof routes / sizeof *routes, NULL);
}
