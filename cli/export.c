// `ooze export`: a checkpoint as a Hugging Face folder. The trainer's program has the model code and does the work.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"

static const char usage[] =
    "usage: ooze export [--checkpoint STEP] [--dtype f32|bf16|fp8] RUN OUT\n\n"
    "Writes OUT, a folder that transformers and this program load: config.json, model.safetensors, the "
    "tokenizer and\n"
    "its chat template. Default: the newest checkpoint, in bf16. OUT must not exist.\n"
    "Exit codes: 0 written, 1 failed, 2 wrong usage.\n";

int command_export(int argc, char **argv)
{
    const char *checkpoint = NULL, *dtype = "bf16";
    const struct option_spec specs[] = {{"checkpoint", &checkpoint, NULL}, {"dtype", &dtype, NULL}, {0}};
    char from[RUNCONFIG_PATH], program[RUNCONFIG_PATH];
    struct error err;
    int n, rc = options_parse("export", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 2 || (strcmp(dtype, "f32") && strcmp(dtype, "bf16") && strcmp(dtype, "fp8"))) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (run_checkpoint(argv[0], checkpoint, from, sizeof from, &err) ||
        program_path("ooze-trainer", program, sizeof program, &err))
        return command_fail("export", &err);
    execl(program, program, "--export", from, argv[1], "--dtype", dtype, (char *)NULL);
    error_errno(&err, errno, "starting %s", program);
    return command_fail("export", &err);
}
