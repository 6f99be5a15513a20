// `ooze generate`: completes a prompt. Text stays here (tokenizer, chat template); the engine's program gets token ids and answers with
// token ids, one JSON object a line.
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/command.h"
#include "text/chat.h"
#include "text/tokenizer.h"

static const char usage[] =
    "usage: ooze generate [options] RUN|MODEL PROMPT\n\n"
    "Completes PROMPT with the newest checkpoint of a run, or with a Hugging Face folder. The prompt is one "
    "user message in the model's\n"
    "chat format.\n\n"
    "  --raw              PROMPT is plain text to go on with, not a message\n"
    "  --checkpoint STEP  another checkpoint of the run\n"
    "  --max-new N        tokens at most (256)\n"
    "  --temperature T    0 = greedy (0)      --top-p P  --top-k K  --min-p P      --seed S (1)\n"
    "  --dtype D          f32, bf16 or fp8 (bf16)\n"
    "  --tokens           print ids and log-probabilities too\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

struct request {
    bool raw, tokens;
    const char *checkpoint, *dtype;
    int64_t max_new, top_k, seed;
    double temperature, top_p, min_p;
};

static enum status prompt_ids(const struct request *q, const struct tokenizer *t, const struct chat *chat,
                              const char *prompt, struct tokens *ret, struct error *err)
{
    if (q->raw)
        return tokenizer_encode(t, prompt, strlen(prompt), TOKENIZER_PLAIN, 0, ret, err);
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    if (!messages)
        return error_set(err, STATUS_INVALID, "the prompt is not valid UTF-8");
    enum status rc = chat_render(chat, messages, NULL, NULL, true, ret, err);
    json_decref(messages);
    return rc;
}

// One line for `ooze-rollout --generate`.
static char *request_line(const struct request *q, const struct tokens *prompt, const struct chat *chat)
{
    struct buf b = {0};
    size_t n = 0;
    const int32_t *stop = chat ? chat_stop_ids(chat, &n) : NULL;
    buf_puts(&b, "{\"ids\":");
    json_put_i32_array(&b, prompt->ids, prompt->n);
    buf_puts(&b, ",\"stop_token_ids\":");
    json_put_i32_array(&b, stop, n);
    buf_printf(&b,
               ",\"max_new\":%lld,\"temperature\":%.17g,\"top_p\":%.17g,\"top_k\":%lld,\"min_p\":%.17g,"
               "\"seed\":%lld}\n",
               (long long)q->max_new, q->temperature, q->top_p, (long long)q->top_k, q->min_p,
               (long long)q->seed);
    return buf_take(&b, NULL);
}

// Runs the engine on one line; the answer's JSON. Its log goes to our stderr only when it fails.
static enum status run_engine(const char *model, const char *dtype, const char *line, json_t **ret,
                              struct error *err)
{
    char program[RUNCONFIG_PATH];
    int in[2], out[2], wait_status;
    struct buf answer = {0};
    enum status rc = program_path("ooze-rollout", program, sizeof program, err);
    if (rc)
        return rc;
    if (pipe(in) < 0 || pipe(out) < 0)
        return error_errno(err, errno, "pipe");
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, errno, "fork");
    if (pid == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        close(in[1]);
        close(out[0]);
        execl(program, program, "--model", model, "--dtype", dtype, "--generate", (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    for (size_t n = strlen(line), w = 0; w < n;) {
        ssize_t k = write(in[1], line + w, n - w);
        if (k <= 0)
            break; // it has died; its exit code says so below
        w += (size_t)k;
    }
    close(in[1]);
    char chunk[16384];
    for (ssize_t k; (k = read(out[0], chunk, sizeof chunk)) > 0;)
        buf_append(&answer, chunk, (size_t)k);
    close(out[0]);
    if (waitpid(pid, &wait_status, 0) != pid || !WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0)
        rc = error_set(err, STATUS_PEER, "%s failed (its message is above)", program);
    else
        rc = json_parse(answer.data ? answer.data : "", answer.len, "answer of ooze-rollout", ret, err);
    buf_done(&answer);
    return rc;
}

static int print_answer(const struct request *q, const struct tokenizer *t, const struct chat *chat,
                        const json_t *answer)
{
    size_t i;
    json_t *v;
    struct buf text = {0};
    struct detokenizer d;
    const char *error = json_string_value(json_object_get(answer, "error"));
    if (error) {
        fprintf(stderr, "ooze generate: %s\n", error);
        return EXIT_FAILED;
    }
    const json_t *ids = json_object_get(answer, "output_ids"),
                 *logprobs = json_object_get(answer, "logprobs");
    detokenizer_init(&d, t, false);
    json_array_foreach(ids, i, v)
    {
        int32_t id = (int32_t)json_integer_value(v);
        if (i + 1 == json_array_size(ids) && chat && chat_is_stop(chat, id))
            break;
        detokenizer_push(&d, id, &text);
    }
    detokenizer_finish(&d, &text);
    printf("%s\n", text.data ? text.data : "");
    buf_done(&text);
    if (q->tokens)
        json_array_foreach(ids, i, v)
        {
            int32_t id = (int32_t)json_integer_value(v);
            size_t n;
            const char *piece = tokenizer_piece(t, id, &n);
            printf("%6zu %8d %10.5f  %.*s\n", i, id, json_number_value(json_array_get(logprobs, i)), (int)n,
                   piece ? piece : "");
        }
    return EXIT_DONE;
}

static int generate(const struct request *q, const char *where, const char *prompt)
{
    struct error err;
    char model[RUNCONFIG_PATH];
    struct tokenizer *t = NULL;
    struct chat *chat = NULL;
    struct tokens ids = {0};
    char *line = NULL, ledger[RUNCONFIG_PATH + 16];
    json_t *answer = NULL;
    int code = EXIT_FAILED;
    snprintf(ledger, sizeof ledger, "%s/ledger.sqlite", where);
    snprintf(model, sizeof model, "%s", where);
    if ((file_exists(ledger) && run_checkpoint(where, q->checkpoint, model, sizeof model, &err)) ||
        tokenizer_open(model, &t, &err))
        goto fail;
    if (chat_open(model, t, &chat, &err)) {
        if (!q->raw)
            goto fail;
        chat = NULL; // plain text needs no template
    }
    if (prompt_ids(q, t, chat, prompt, &ids, &err))
        goto fail;
    line = request_line(q, &ids, chat);
    if (run_engine(model, q->dtype, line, &answer, &err))
        goto fail;
    code = print_answer(q, t, chat, answer);
    goto out;
fail:
    code = command_fail("generate", &err);
out:
    json_decref(answer);
    free(line);
    tokens_done(&ids);
    chat_close(chat);
    tokenizer_close(t);
    return code;
}

// A whole number, none of them negative; the engine says which are too large. false: said so.
static bool read_count(const char *option, const char *text, int64_t *ret)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || errno) {
        fprintf(stderr, "ooze generate: --%s %s: give a whole number from 0 on\n", option, text);
        return false;
    }
    *ret = v;
    return true;
}

static bool read_real(const char *option, const char *text, double *ret)
{
    char *end;
    double v = strtod(text, &end);
    if (!*text || *end || !isfinite(v) || v < 0) {
        fprintf(stderr, "ooze generate: --%s %s: give a finite number from 0 on\n", option, text);
        return false;
    }
    *ret = v;
    return true;
}

int command_generate(int argc, char **argv)
{
    struct request q = {.dtype = "bf16"};
    const char *max_new = "256", *top_k = "0", *seed = "1", *temperature = "0", *top_p = "1", *min_p = "0";
    const struct option_spec specs[] = {{"raw", NULL, &q.raw},
                                        {"tokens", NULL, &q.tokens},
                                        {"checkpoint", &q.checkpoint, NULL},
                                        {"max-new", &max_new, NULL},
                                        {"temperature", &temperature, NULL},
                                        {"top-p", &top_p, NULL},
                                        {"top-k", &top_k, NULL},
                                        {"min-p", &min_p, NULL},
                                        {"seed", &seed, NULL},
                                        {"dtype", &q.dtype, NULL},
                                        {0}};
    int n, rc = options_parse("generate", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 2) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (!read_count("max-new", max_new, &q.max_new) || !read_count("top-k", top_k, &q.top_k) ||
        !read_count("seed", seed, &q.seed) || !read_real("temperature", temperature, &q.temperature) ||
        !read_real("top-p", top_p, &q.top_p) || !read_real("min-p", min_p, &q.min_p))
        return EXIT_USAGE;
    return generate(&q, argv[0], argv[1]);
}
