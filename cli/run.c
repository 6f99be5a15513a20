// `ooze run` and `ooze resume`: make the run directory, then stay with the run to its end.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/command.h"
#include "cli/run_dir.h"
#include "cli/supervise.h"
#include "ledger/reader.h"

static const char run_usage[] =
    "usage: ooze run [--dry-run] [--quiet] CONFIG.yaml… [KEY=VALUE…]\n\n"
    "Starts a run and stays with it: an orchestrator, a trainer, rollout engines and the task services of "
    "the configuration, as\n"
    "processes of their own that are restarted when they fail. Later files and KEY=VALUE overrides "
    "(trainer.dtype=f32,\n"
    "stages.rl.steps=10) win from left to right. The run directory (run_dir, default runs/NAME) receives "
    "everything: config.yaml,\n"
    "ledger.sqlite, checkpoints/, logs/, metrics.jsonl.\n\n"
    "  --dry-run   print the resolved configuration, every default included, and start nothing\n"
    "  --quiet     no progress on stdout\n\n"
    "Ctrl-C once drains, checkpoints and ends; twice ends now. Either way `ooze resume RUN` goes on.\n"
    "Exit codes: 0 the run is done or was stopped in order, 1 it failed, 2 the configuration is wrong.\n";

static const char resume_usage[] =
    "usage: ooze resume [--quiet] RUN\n\n"
    "Goes on with a run that was stopped or killed, from its last durable state: nothing is lost and\n"
    "nothing is trained twice (`ooze audit RUN` proves it).\n"
    "Exit codes as for `ooze run`.\n";

int run_supervised(const char *command, const char *run_dir, const struct run_config *c, bool quiet)
{
    struct error err = {0};
    bool stopped = false;
    enum status rc = supervise_run(run_dir, c, quiet, &stopped, &err);
    if (rc)
        return command_fail(command, &err);
    if (!quiet)
        printf(stopped ? "run %s is stopped; `ooze resume %s` goes on\n"
                       : "run %s is done; `ooze eval %s` shows its results\n",
               run_dir, run_dir);
    return EXIT_DONE;
}

// Trainer and engines would find out themselves, but only after the run directory is there.
static enum status check_cores(const struct run_config *c, struct error *err)
{
    struct cores_share *share = mem_must(1, sizeof *share);
    struct cores_list allowed;
    cores_allowed(&allowed);
    enum status rc = cores_for_trainer(c, &allowed, share, err);
    for (int i = 0; i < c->rollout.engines && !rc; i++)
        rc = cores_for_engine(c, &allowed, i, share, err);
    if (!rc && *share->warning)
        fprintf(stderr, "ooze run: %s\n", share->warning);
    free(share);
    return rc;
}

int command_run(int argc, char **argv)
{
    bool dry = false, quiet = false;
    const struct option_spec specs[] = {{"dry-run", NULL, &dry}, {"quiet", NULL, &quiet}, {0}};
    int n, rc = options_parse("run", run_usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    int n_files = 0;
    const char **files = mem_must((size_t)n + 1, sizeof *files),
               **overrides = mem_must((size_t)n + 1, sizeof *overrides);
    int n_overrides = 0;
    for (int i = 0; i < n; i++) {
        if (strchr(argv[i], '=') && !file_exists(argv[i]))
            overrides[n_overrides++] = argv[i];
        else
            files[n_files++] = argv[i];
    }
    struct run_config *c = mem_must(1, sizeof *c);
    struct error err;
    rc = EXIT_USAGE;
    if (n_files == 0) {
        fprintf(stderr, "ooze run: no configuration given\n%s", run_usage);
    } else if (runconfig_load(files, n_files, overrides, n_overrides, c, &err)) {
        fprintf(stderr, "ooze run: %s\n", err.text);
    } else if (dry) {
        struct buf out = {0};
        runconfig_print(c, &out);
        fwrite(out.data, 1, out.len, stdout);
        buf_done(&out);
        rc = EXIT_DONE;
    } else if (check_cores(c, &err)) {
        fprintf(stderr, "ooze run: %s\n", err.text);
    } else {
        char real[RUNCONFIG_PATH];
        rc =
            run_dir_create(c, real, &err) ? command_fail("run", &err) : run_supervised("run", real, c, quiet);
    }
    free(c);
    free(files);
    free(overrides);
    return rc;
}

int command_resume(int argc, char **argv)
{
    bool quiet = false;
    const struct option_spec specs[] = {{"quiet", NULL, &quiet}, {0}};
    struct run_config *c;
    struct error err;
    char real[RUNCONFIG_PATH];
    int n, rc = options_parse("resume", resume_usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 1) {
        fputs(resume_usage, stderr);
        return EXIT_USAGE;
    }
    if (run_dir_real(argv[0], real, &err) || run_load(real, &c, &err))
        return command_fail("resume", &err);
    rc = run_supervised("resume", real, c, quiet);
    free(c);
    return rc;
}
