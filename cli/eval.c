// `ooze eval`: held-out results, those recorded during a run or new ones of a checkpoint.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/command.h"
#include "cli/run_dir.h"
#include "ledger/reader.h"

static const char usage[] =
    "usage: ooze eval [--json] RUN\n"
    "       ooze eval --checkpoint STEP|last [--n N] [--samples K] [--json] RUN\n\n"
    "Prints the held-out evaluations that a run recorded: share of answers that "
    "reach the top of the task's reward range, mean reward, and\n"
    "share of prompts solved by at least one of K answers (pass@K). With "
    "--checkpoint the checkpoint is evaluated anew, on N held-out\n"
    "prompts a task, by a small run of its own in RUN/eval.\n\n"
    "  --summary --seed S --wall SECONDS   the summary.json of the examples: {seed, "
    "stages:[{name, eval:{task:{success, n}}}], wall_s},\n"
    "           where the evaluation before the first stage is named random, or initial with model.path\n"
    "  --json   [{label, stage, version, tasks:{name:{success, mean, n, samples, "
    "pass_at_samples, tokens}}}]\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

static void print_evals(const json_t *list)
{
    size_t i;
    json_t *e, *t;
    const char *name;
    printf("%-20s %8s  %-16s %8s %8s %8s %8s %8s\n", "evaluation", "version", "task", "success", "reward",
           "pass@k", "k", "answers");
    json_array_foreach(list, i, e) json_object_foreach(json_object_get(e, "tasks"), name, t) printf(
        "%-20s %8lld  %-16s %8.3f %8.3f %8.3f %8lld %8lld\n", json_string_value(json_object_get(e, "label")),
        (long long)json_integer_value(json_object_get(e, "version")), name,
        json_number_value(json_object_get(t, "success")), json_number_value(json_object_get(t, "mean")),
        json_number_value(json_object_get(t, "pass_at_samples")),
        (long long)json_integer_value(json_object_get(t, "samples")),
        (long long)json_integer_value(json_object_get(t, "n")));
}

// {seed, stages:[{name, eval:{task:{success, n}}}], wall_s} of the evaluations at the start and at the stages' ends.
static json_t *summarise(const json_t *list, const char *start, int64_t seed, double wall_s)
{
    size_t i;
    json_t *e, *t, *stages = json_array();
    const char *name;
    json_array_foreach(list, i, e)
    {
        const char *label = json_string_value(json_object_get(e, "label"));
        if (!strcmp(label, "start"))
            label = start;
        else if (!strncmp(label, "stage:", 6))
            label += 6;
        else
            continue;
        json_t *evals = json_object();
        json_object_foreach(json_object_get(e, "tasks"), name, t) json_object_set_new(
            evals, name,
            json_pack("{s:O, s:O}", "success", json_object_get(t, "success"), "n", json_object_get(t, "n")));
        json_array_append_new(stages, json_pack("{s:s, s:o}", "name", label, "eval", evals));
    }
    return json_pack("{s:I, s:o, s:f}", "seed", (json_int_t)seed, "stages", stages, "wall_s", wall_s);
}

static int show_evals(const char *run_dir, bool json, bool summary, int64_t seed, double wall_s)
{
    struct error err;
    struct ledger *l;
    json_t *list;
    if (ledger_open_readonly(run_dir, &l, &err))
        return command_fail("eval", &err);
    enum status s = ledger_eval_summary(l, &list, &err);
    ledger_close(l);
    if (s)
        return command_fail("eval", &err);
    if (summary) {
        struct run_config *c;
        if (run_load(run_dir, &c, &err)) {
            json_decref(list);
            return command_fail("eval", &err);
        }
        json_t *j = summarise(list, c->model.path[0] ? "initial" : "random", seed, wall_s);
        free(c);
        json_decref(list);
        list = j;
    }
    if (json || summary) {
        char *text = json_text(list);
        printf("%s\n", text);
        free(text);
    } else {
        print_evals(list);
    }
    json_decref(list);
    return EXIT_DONE;
}

// A run whose model is the checkpoint and whose only act is the evaluation at its start.
static int eval_checkpoint(const char *run_dir, const char *wanted, int64_t n, int64_t samples, bool json)
{
    struct error err;
    struct run_config *c;
    char checkpoint[RUNCONFIG_PATH], real[RUNCONFIG_PATH], dir[RUNCONFIG_PATH + 64];
    if (run_dir_real(run_dir, real, &err) || run_load(real, &c, &err))
        return command_fail("eval", &err);
    int code;
    if (run_checkpoint(real, strcmp(wanted, "last") ? wanted : NULL, checkpoint, sizeof checkpoint, &err)) {
        code = command_fail("eval", &err);
        goto out;
    }
    snprintf(dir, sizeof dir, "%s/eval/%d", real, (int)getpid());
    c->model = (struct run_model){.chat_template = "auto"}; // shape and tokenizer come from the folders
    snprintf(c->model.path, sizeof c->model.path, "%s", checkpoint);
    snprintf(c->run_dir, sizeof c->run_dir, "%.1000s", dir);
    snprintf(c->model.tokenizer, sizeof c->model.tokenizer, "%.1000s/tokenizer", real);
    memset(c->orchestrator.listen, 0, sizeof c->orchestrator.listen); // that address is the run's own
    c->eval.only = true;
    c->eval.n = n ? n : c->eval.n;
    c->eval.samples = samples ? samples : c->eval.samples;
    if (run_dir_create(c, dir, &err))
        code = command_fail("eval", &err);
    else if ((code = run_supervised("eval", dir, c, true)) == EXIT_DONE)
        code = show_evals(dir, json, false, 0, 0);
out:
    free(c);
    return code;
}

int command_eval(int argc, char **argv)
{
    bool json = false, summary = false;
    const char *checkpoint = NULL, *n_text = "0", *samples_text = "0", *seed_text = "0", *wall_text = "0";
    const struct option_spec specs[] = {{"json", NULL, &json},       {"checkpoint", &checkpoint, NULL},
                                        {"n", &n_text, NULL},        {"samples", &samples_text, NULL},
                                        {"summary", NULL, &summary}, {"seed", &seed_text, NULL},
                                        {"wall", &wall_text, NULL},  {0}};
    char *end1, *end2, *end3, *end4;
    int n, rc = options_parse("eval", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    long long prompts = strtoll(n_text, &end1, 10), samples = strtoll(samples_text, &end2, 10);
    long long seed = strtoll(seed_text, &end3, 10);
    double wall = strtod(wall_text, &end4);
    if (n != 1 || *end1 || *end2 || *end3 || *end4 || prompts < 0 || samples < 0) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    return checkpoint ? eval_checkpoint(argv[0], checkpoint, prompts, samples, json)
                      : show_evals(argv[0], json, summary, seed, wall);
}
