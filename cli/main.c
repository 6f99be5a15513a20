// ooze: starts, watches and examines runs. Dispatch only; each command is its own file.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/command.h"

static void help(void)
{
    static const struct {
        const char *name, *args, *help;
    } list[] = {
#define COMMAND(name, args, help) {#name, args, help},
#include "cli/command.def"
#undef COMMAND
    };
    printf("ooze %s: asynchronous agentic reinforcement learning for language models\n\nusage: ooze COMMAND "
           "…\n\n",
           OOZE_VERSION);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        int extra = 0; // bytes of a character beyond its first take no column
        for (const char *c = list[i].args; *c; c++)
            extra += (*c & 0xc0) == 0x80;
        printf("  %-9s %-*s %s\n", list[i].name, 34 + extra, list[i].args, list[i].help);
    }
    printf("\n`ooze COMMAND --help` explains one. RUN is a run directory (runs/NAME).\n"
           "Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage or bad configuration.\n");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2 || !strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        help();
        return argc < 2 ? EXIT_USAGE : EXIT_DONE;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("ooze %s\n", OOZE_VERSION);
        return EXIT_DONE;
    }
#define COMMAND(name, args, help)                                                                            \
    if (!strcmp(argv[1], #name))                                                                             \
        return command_##name(argc - 2, argv + 2);
#include "cli/command.def"
#undef COMMAND
    fprintf(stderr, "ooze: no command %s; `ooze help` lists them\n", argv[1]);
    return EXIT_USAGE;
}
