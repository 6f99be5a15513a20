// The native HTTP API over a real socket: server, worker and client on one loop, the engine on its threads.
#include "tests/isa.h"
#include "tiny.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "net/http_client.h"
#include "rollout/http_api.h"

struct side { // everything a test needs
    struct loop *loop;
    struct worker *worker;
    struct http_api *api;
    struct http_client *client;
    char dir[64], models[2][96];
    struct worker_loaded loaded;
    int n_loaded;
};

static void on_outputs(void *ctx, const struct outputs *o)
{
    struct side *s = ctx;
    http_api_outputs(s->api, o);
}

static void on_loaded(void *ctx, const struct worker_loaded *l)
{
    struct side *s = ctx;
    s->loaded = *l;
    s->n_loaded++;
    http_api_loaded(s->api, l);
}

static void on_failed(void *ctx, const struct error *err)
{
    (void)ctx;
    fail_msg("%s", err->text);
}

static void write_models(struct side *s)
{
    struct model_config c = tiny_config();
    struct layout l;
    must(layout_open(&c, &l, err));
    float *master = mem_alloc((size_t)l.total * sizeof(float));
    for (int i = 0; i < 2; i++) {
        char hash[HASH_HEX];
        snprintf(s->models[i], sizeof s->models[i], "%s/model-%d", s->dir, i);
        layout_init_random(&l, &c, 40 + (uint64_t)i, master);
        must(model_folder_write(s->models[i], &c, &l, master, DT_F32, NULL, hash, err));
    }
    mem_free(master);
    layout_done(&l);
}

static void side_open_as(struct side *s, struct http_api_config a, int32_t kv_tokens)
{
    *s = (struct side){0};
    strcpy(s->dir, "/tmp/ooze-http-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    write_models(s);
    must(loop_open(&s->loop, err));
    const struct worker_config w = {.isa = test_isa(),
                                    .threads = 1,
                                    .model = tiny_config(),
                                    .dtype = DT_F32,
                                    .engine = {.kv_tokens = kv_tokens},
                                    .loop = s->loop,
                                    .on_outputs = on_outputs,
                                    .on_loaded = on_loaded,
                                    .on_failed = on_failed,
                                    .ctx = s};
    must(worker_open(&w, &s->worker, err));
    a.loop = s->loop;
    a.worker = s->worker;
    a.model = w.model;
    a.name = "engine-0";
    must(http_api_open(&a, &s->api, err));
    must(http_client_open(s->loop, &(struct http_client_config){0}, &s->client, err));
}

static void side_open(struct side *s, const char *token, int32_t kv_tokens)
{
    side_open_as(s, (struct http_api_config){.token = token}, kv_tokens);
}

static void side_load(struct side *s, int model, int64_t version)
{
    struct worker_load load = {.version = version, .folder = true};
    snprintf(load.path, sizeof load.path, "%s", s->models[model]);
    must(worker_load_start(s->worker, &load, err));
    int before = s->n_loaded;
    for (int i = 0; i < 1000 && s->n_loaded == before; i++)
        loop_run_for(s->loop, 10);
    assert_true(s->loaded.ok);
}

static void side_close(struct side *s)
{
    http_client_close(s->client);
    http_api_close(s->api);
    worker_close(s->worker);
    loop_close(s->loop);
    must(file_remove_tree(s->dir, err));
}

struct reply {
    bool done;
    int status;
    struct buf body;
    enum http_outcome outcome;
};

static void on_done(void *ctx, const struct http_result *r)
{
    struct reply *y = ctx;
    y->done = true;
    y->status = r->status;
    y->outcome = r->outcome;
    buf_append(&y->body, r->body, r->body_len);
}

static void on_data(void *ctx, const char *data, size_t n)
{
    struct reply *y = ctx;
    buf_append(&y->body, data, n);
}

static struct http_call *start(struct side *s, const char *method, const char *path, const char *body,
                               const char *bearer, bool stream, struct reply *ret)
{
    char url[128];
    *ret = (struct reply){0};
    snprintf(url, sizeof url, "http://127.0.0.1:%d%s", http_api_port(s->api), path);
    const struct http_call_spec spec = {.method = method,
                                        .url = url,
                                        .body = body,
                                        .body_len = body ? strlen(body) : 0,
                                        .bearer = bearer,
                                        .on_done = on_done,
                                        .on_data = stream ? on_data : NULL,
                                        .ctx = ret};
    struct http_call *call = NULL;
    must(http_call_start(s->client, &spec, &call, err));
    return call;
}

static void wait_for(struct side *s, const struct reply *r)
{
    for (int i = 0; i < 3000 && !r->done; i++)
        loop_run_for(s->loop, 10);
    assert_true(r->done);
}

// Whole call; the body as JSON (NULL when it is none).
static json_t *call(struct side *s, const char *method, const char *path, const char *body,
                    const char *bearer, int want_status)
{
    struct reply r;
    start(s, method, path, body, bearer, false, &r);
    wait_for(s, &r);
    if (r.status != want_status)
        fail_msg("%s %s: %d %s", method, path, r.status, r.body.data);
    json_t *j = json_loadb(r.body.data ? r.body.data : "", r.body.len, 0, NULL);
    buf_done(&r.body);
    return j;
}

static const char *text_at(const json_t *j, const char *a, const char *b)
{
    const json_t *v = json_object_get(json_object_get(j, a), b);
    return json_string_value(v) ? json_string_value(v) : "";
}

static int64_t int_at(const json_t *j, const char *a, const char *b)
{
    return json_integer_value(json_object_get(json_object_get(j, a), b));
}

static void test_generate(void **state)
{
    (void)state;
    struct side s;
    side_open(&s, NULL, 1024);
    json_decref(call(&s, "GET", "/health", NULL, NULL, 503));
    side_load(&s, 0, 0);
    json_decref(call(&s, "GET", "/health", NULL, NULL, 200));

    // The same request twice is the same answer, and what the engine says when called directly.
    static const char body[] =
        "{\"input_ids\":[5,6,7,8],\"sampling_params\":{\"temperature\":0.8,\"max_new_tokens\":12,\"sampling_"
        "seed\":3},"
        "\"return_logprob\":true,\"logprob_start_len\":0,\"top_logprobs_num\":2,\"rid\":\"r1\"}";
    json_t *a = call(&s, "POST", "/generate", body, NULL, 200),
           *b = call(&s, "POST", "/generate", body, NULL, 200);
    assert_true(json_equal(a, b));
    struct tiny t;
    tiny_open(&t, DT_F32, 1);
    struct engine *e = tiny_engine(&t, (struct engine_config){.kv_tokens = 1024});
    const int32_t prompt[] = {5, 6, 7, 8};
    struct got *g = mem_must(1, sizeof *g);
    struct engine_job job = {.msg = {.job = 1,
                                     .run_seed = 3,
                                     .sampling = {.temperature = 0.8f, .top_p = 1, .max_new = 12},
                                     .n_ids = 4,
                                     .ids = prompt}};
    must(engine_submit(e, &job, err));
    tiny_run(e, g, 1);
    const json_t *ids = json_object_get(a, "output_ids"), *meta = json_object_get(a, "meta_info");
    const json_t *lps = json_object_get(meta, "output_token_logprobs");
    assert_int_equal(json_array_size(ids), 12);
    for (size_t i = 0; i < 12; i++) {
        assert_int_equal(json_integer_value(json_array_get(ids, i)), g->ids[i]);
        assert_true((float)json_real_value(json_array_get(json_array_get(lps, i), 0)) == g->logprobs[i]);
    }
    assert_int_equal(json_array_size(json_object_get(meta, "input_token_logprobs")), 4);
    assert_int_equal(json_array_size(json_array_get(json_object_get(meta, "output_top_logprobs"), 3)), 2);
    assert_string_equal(text_at(a, "meta_info", "id"), "r1");
    assert_string_equal(text_at(a, "meta_info", "weight_version"), "0");
    assert_string_equal(text_at(meta, "finish_reason", "type"), "length");
    assert_int_equal(int_at(a, "meta_info", "prompt_tokens"), 4);
    assert_int_equal(int_at(a, "meta_info", "completion_tokens"), 12);
    json_decref(a);
    json_decref(b);
    free(g);
    engine_close(e);
    tiny_close(&t);

    a = call(&s, "POST", "/generate",
             "{\"input_ids\":[1],\"sampling_params\":{\"n\":3,\"max_new_tokens\":8}}", NULL, 200);
    assert_int_equal(json_array_size(a), 3);
    assert_false(json_equal(json_object_get(json_array_get(a, 0), "output_ids"),
                            json_object_get(json_array_get(a, 1), "output_ids")));
    json_decref(a);
    side_close(&s);
}

static void test_bad_requests(void **state)
{
    (void)state;
    struct side s;
    side_open(&s, NULL, 256);
    side_load(&s, 0, 0);
    static const struct {
        const char *body, *says;
    } bad[] = {
        {"{\"text\":\"hello\"}", "input_ids"},
        {"{}", "input_ids"},
        {"{\"input_ids\":[]}", "empty"},
        {"{\"input_ids\":[1,-2]}", "input_ids[1]"},
        {"{\"input_ids\":[[1]]}", "input_ids[0]"},
        {"{\"input_ids\":[264]}", "vocabulary"},
        {"{\"input_ids\":[1],\"sampling_params\":{\"temperature\":\"hot\"}}", "temperature"},
        {"{\"input_ids\":[1],\"sampling_params\":{\"top_p\":0}}", "top_p"},
        {"{\"input_ids\":[1],\"sampling_params\":{\"n\":0}}", "n"},
        {"{\"input_ids\":[1],\"sampling_params\":{\"n\":2},\"stream\":true}", "stream"},
        {"{\"input_ids\":[1],\"sampling_params\":{\"stop_token_ids\":[9999]}}", "stop"},
        {"{\"input_ids\":[1],\"top_logprobs_num\":99}", "top_logprobs_num"},
        {"[1]", "object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *j = call(&s, "POST", "/generate", bad[i].body, NULL, 400);
        const char *message = text_at(j, "error", "message");
        if (!strstr(message, bad[i].says))
            fail_msg("%s: \"%s\" does not name %s", bad[i].body, message, bad[i].says);
        json_decref(j);
    }
    json_decref(call(&s, "GET", "/generate", NULL, NULL, 405));
    json_decref(call(&s, "GET", "/nothing", NULL, NULL, 404));
    side_close(&s);
}

static void test_stream_and_abort(void **state)
{
    (void)state;
    struct side s;
    side_open(&s, NULL, 4096);
    side_load(&s, 0, 0);
    static const char body[] =
        "{\"input_ids\":[9,9,1],\"sampling_params\":{\"max_new_tokens\":40,\"sampling_seed\":5}%s}";
    char whole[256], streamed[256];
    snprintf(whole, sizeof whole, body, "");
    snprintf(streamed, sizeof streamed, body, ",\"stream\":true");
    json_t *want = call(&s, "POST", "/generate", whole, NULL, 200);
    struct reply r;
    start(&s, "POST", "/generate", streamed, NULL, true, &r);
    wait_for(&s, &r);
    assert_int_equal(r.status, 200);
    json_t *ids = json_array();
    int events = 0;
    bool finished = false;
    char *save = NULL;
    for (char *line = strtok_r(r.body.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        assert_true(strncmp(line, "data: ", 6) == 0);
        if (strcmp(line, "data: [DONE]") == 0) {
            finished = true;
            continue;
        }
        assert_false(finished);
        json_t *j = json_loads(line + 6, 0, NULL);
        json_array_extend(ids, json_object_get(j, "output_ids"));
        json_decref(j);
        events++;
    }
    assert_true(finished && events > 1);
    assert_true(json_equal(ids, json_object_get(want, "output_ids")));
    json_decref(ids);
    json_decref(want);
    buf_done(&r.body);

    // A client that hangs up takes its job with it.
    json_decref(call(&s, "POST", "/pause_generation", "{\"mode\":\"in_place\"}", NULL, 200));
    struct http_call *c = start(&s, "POST", "/generate", streamed, NULL, true, &r);
    struct worker_stats stats = {0};
    for (int i = 0; i < 500 && stats.engine.waiting == 0; i++) {
        loop_run_for(s.loop, 10);
        worker_stats(s.worker, &stats);
    }
    assert_int_equal(stats.engine.waiting, 1);
    http_call_cancel(c);
    for (int i = 0; i < 500 && stats.engine.waiting > 0; i++) {
        loop_run_for(s.loop, 10);
        worker_stats(s.worker, &stats);
    }
    assert_int_equal(stats.engine.waiting, 0);
    json_decref(call(&s, "POST", "/continue_generation", "{}", NULL, 200));

    // Paused in place, then aborted by rid: what was sampled comes back.
    json_decref(call(&s, "POST", "/pause_generation", "{\"mode\":\"in_place\"}", NULL, 200));
    start(&s, "POST", "/generate",
          "{\"input_ids\":[3],\"rid\":\"long\",\"sampling_params\":{\"max_new_tokens\":500}}", NULL, false,
          &r);
    loop_run_for(s.loop, 50);
    assert_false(r.done);
    json_t *j = call(&s, "POST", "/abort_request", "{\"rid\":\"long\"}", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(j, "aborted")), 1);
    json_decref(j);
    wait_for(&s, &r);
    assert_int_equal(r.status, 200);
    assert_non_null(strstr(r.body.data, "\"type\":\"abort\""));
    buf_done(&r.body);
    json_decref(call(&s, "POST", "/continue_generation", "{}", NULL, 200));
    json_decref(call(&s, "POST", "/flush_cache", "{}", NULL, 200));
    json_decref(call(&s, "POST", "/generate", whole, NULL, 200));
    side_close(&s);
}

static void test_update_and_token(void **state)
{
    (void)state;
    struct side s;
    side_open(&s, "secret", 1024);
    side_load(&s, 0, 0);
    char body[256];
    snprintf(body, sizeof body, "{\"model_path\":\"%s\",\"weight_version\":\"7\"}", s.models[1]);
    json_decref(call(&s, "POST", "/update_weights_from_disk", body, NULL, 401));
    json_decref(call(&s, "POST", "/update_weights_from_disk", body, "wrong", 401));
    json_decref(call(&s, "POST", "/abort_request", "{\"abort_all\":true}", NULL, 401));
    json_decref(call(&s, "POST", "/pause_generation", "{}", NULL, 401));
    json_decref(call(&s, "POST", "/abort_request", "{\"rid\":\"mine\"}", NULL, 200));

    // A long generation goes on through the swap, and says so.
    struct reply r;
    start(&s, "POST", "/generate", "{\"input_ids\":[3],\"sampling_params\":{\"max_new_tokens\":500}}", NULL,
          false, &r);
    json_t *j = call(&s, "POST", "/update_weights_from_disk", body, "secret", 200);
    assert_true(json_is_true(json_object_get(j, "success")));
    json_decref(j);
    wait_for(&s, &r);
    j = json_loads(r.body.data, 0, NULL);
    buf_done(&r.body);
    const json_t *versions = json_object_get(json_object_get(j, "meta_info"), "weight_versions");
    assert_int_equal(json_array_size(json_object_get(j, "output_ids")), 500);
    const json_t *last = json_array_get(versions, json_array_size(versions) - 1);
    assert_int_equal(json_integer_value(json_object_get(last, "end")), 500);
    json_decref(j);
    j = call(&s, "GET", "/get_weight_version", NULL, NULL, 200);
    assert_string_equal(json_string_value(json_object_get(j, "weight_version")), "7");
    json_decref(j);

    // Refused without a change: an older version, one that is none, no such file, another shape.
    json_decref(call(&s, "POST", "/update_weights_from_disk", body, "secret", 400));
    static const char *const versions_wrong[] = {
        "2147483648", "\"99999999999999999999\"", "-3", "8.5", "\"8x\"", "true"};
    for (size_t i = 0; i < sizeof versions_wrong / sizeof versions_wrong[0]; i++) {
        snprintf(body, sizeof body, "{\"model_path\":\"%s\",\"weight_version\":%s}", s.models[1],
                 versions_wrong[i]);
        j = call(&s, "POST", "/update_weights_from_disk", body, "secret", 400);
        assert_non_null(strstr(json_string_value(json_object_get(j, "message")), "version"));
        json_decref(j);
    }
    json_decref(
        call(&s, "POST", "/update_weights_from_disk", "{\"model_path\":\"/nothing\"}", "secret", 400));
    json_decref(
        call(&s, "POST", "/update_weights_from_disk", "{\"model_path\":\"/dev/null\"}", "secret", 400));
    struct model_config c = tiny_config();
    c.ffn = 64;
    snprintf(body, sizeof body, "%s/config.json", s.models[0]);
    must(file_remove_tree(body, err));
    must(model_config_write(&c, DT_F32, s.models[0], err));
    snprintf(body, sizeof body, "{\"model_path\":\"%s\"}", s.models[0]);
    j = call(&s, "POST", "/update_weights_from_disk", body, "secret", 400);
    assert_non_null(strstr(json_string_value(json_object_get(j, "message")), "shape"));
    json_decref(j);
    j = call(&s, "GET", "/get_weight_version", NULL, NULL, 200);
    assert_string_equal(json_string_value(json_object_get(j, "weight_version")), "7");
    json_decref(j);

    start(&s, "GET", "/metrics", NULL, NULL, false, &r);
    wait_for(&s, &r);
    assert_non_null(strstr(r.body.data, "ooze_weights_version{engine=\"engine-0\"} 7\n"));
    buf_done(&r.body);
    side_close(&s);
}

// Contract 4: the weights of a run's engine are the trainer's and its jobs the orchestrator's, whoever has the token.
static void test_engine_of_a_run(void **state)
{
    (void)state;
    struct side s;
    side_open_as(&s, (struct http_api_config){.token = "secret", .in_run = true}, 1024);
    side_load(&s, 0, 0);
    char body[256];
    snprintf(body, sizeof body, "{\"model_path\":\"%s\"}", s.models[1]);
    json_decref(call(&s, "POST", "/update_weights_from_disk", body, "secret", 403));
    json_decref(call(&s, "POST", "/abort_request", "{\"abort_all\":true}", "secret", 403));
    json_decref(call(&s, "POST", "/pause_generation", "{}", "secret", 403));
    json_decref(call(&s, "POST", "/pause_generation", "{\"mode\":\"abort\"}", "secret", 403));
    assert_int_equal(worker_newest(s.worker), 0);
    // What ends nothing is the token's.
    json_decref(call(&s, "POST", "/pause_generation", "{\"mode\":\"in_place\"}", NULL, 401));
    json_decref(call(&s, "POST", "/pause_generation", "{\"mode\":\"in_place\"}", "secret", 200));
    json_decref(call(&s, "POST", "/continue_generation", "{}", "secret", 200));
    json_decref(call(&s, "POST", "/abort_request", "{\"rid\":\"mine\"}", NULL, 200));
    json_decref(call(&s, "POST", "/generate", "{\"input_ids\":[1]}", NULL, 200));
    side_close(&s);
}

// Where other hosts reach the engine, nothing but looking is free.
static void test_off_loopback(void **state)
{
    (void)state;
    struct side s;
    side_open_as(&s, (struct http_api_config){.host = "0.0.0.0", .token = "secret"}, 1024);
    side_load(&s, 0, 0);
    static const char *const posts[] = {"/generate", "/abort_request", "/flush_cache",
                                        "/update_weights_from_disk"};
    for (size_t i = 0; i < sizeof posts / sizeof posts[0]; i++)
        json_decref(call(&s, "POST", posts[i], "{\"input_ids\":[1],\"rid\":\"x\"}", NULL, 401));
    json_decref(call(&s, "POST", "/generate", "{\"input_ids\":[1]}", "secret", 200));
    json_decref(call(&s, "GET", "/health", NULL, NULL, 200));
    struct http_api *none = NULL;
    struct error err;
    const struct http_api_config open = {.loop = s.loop, .worker = s.worker, .host = "0.0.0.0"};
    assert_int_equal(http_api_open(&open, &none, &err), STATUS_REFUSED);
    assert_non_null(strstr(err.text, "--token-file"));
    assert_null(none);
    side_close(&s);
}

// Updates that come while another load takes its time: each is answered as soon as it is known how it ends.
static void test_updates_overtaken(void **state)
{
    (void)state;
    enum { UPDATES = 12 }; // more than may wait at once
    struct side s;
    side_open(&s, NULL, 1024);
    side_load(&s, 0, 0);
    struct worker_load slow = {.version = 1};
    snprintf(slow.path, sizeof slow.path, "%s/slow", s.dir);
    assert_int_equal(mkfifo(slow.path, 0600), 0); // opening it takes until somebody opens its other end
    must(worker_load_start(s.worker, &slow, err));
    int before;
    do { // until one of them is under way, and the next one waits behind it
        slow.version++;
        must(worker_load_start(s.worker, &slow, err));
        before = s.n_loaded;
        loop_run_for(s.loop, 50);
    } while (s.n_loaded > before);
    char body[256];
    snprintf(body, sizeof body, "{\"model_path\":\"%s\"}", s.models[1]);
    struct reply r[UPDATES];
    for (int i = 0; i < UPDATES; i++) {
        start(&s, "POST", "/update_weights_from_disk", body, NULL, false, &r[i]);
        for (int k = 0; k < 1000 && worker_newest(s.worker) <= slow.version + i; k++)
            loop_run_for(s.loop, 10);
        assert_int_equal(worker_newest(s.worker), slow.version + 1 + i);
        if (i == 0)
            continue;
        wait_for(&s, &r[i - 1]);
        assert_int_equal(r[i - 1].status, 400);
        assert_non_null(strstr(r[i - 1].body.data, "came before"));
        buf_done(&r[i - 1].body);
    }

    // Of loads that overtake each other while the loop does not run, none goes unreported: there is an end to them instead.
    int started = 0;
    before = s.n_loaded;
    struct worker_load next = {.version = worker_newest(s.worker), .folder = true};
    snprintf(next.path, sizeof next.path, "%s", s.models[0]);
    enum status st = STATUS_OK;
    for (struct error err; st == STATUS_OK && started < 1000; started += st == STATUS_OK) {
        next.version++;
        st = worker_load_start(s.worker, &next, &err);
    }
    assert_int_equal(st, STATUS_AGAIN);
    for (int k = 0; k < 1000 && s.n_loaded < before + started; k++)
        loop_run_for(s.loop, 10);
    assert_int_equal(s.n_loaded,
                     before + started); // the last one waits; the HTTP update before them was the first to go
    assert_true(r[UPDATES - 1].done && r[UPDATES - 1].status == 400);
    buf_done(&r[UPDATES - 1].body);

    int fd = open(slow.path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    for (int k = 0; k < 1000 && s.n_loaded < before + started + 2; k++) // the slow one, and the last one
        loop_run_for(s.loop, 10);
    assert_int_equal(s.n_loaded, before + started + 2);
    assert_true(s.loaded.ok);
    assert_int_equal(s.loaded.load.version, next.version - 1);
    side_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),          cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_stream_and_abort),  cmocka_unit_test(test_update_and_token),
        cmocka_unit_test(test_engine_of_a_run),   cmocka_unit_test(test_off_loopback),
        cmocka_unit_test(test_updates_overtaken),
    };
    return cmocka_run_group_tests_name("rollout http", tests, NULL, NULL);
}
