// `ooze stop`: asks the orchestrator to drain, checkpoint and end.
#include <stdio.h>

#include "cli/command.h"

static const char usage[] = "usage: ooze stop [--now] RUN\n\n"
                            "Asks a running run to finish running work (up to orchestrator.drain_ms), write "
                            "a checkpoint and end. With --now it\n"
                            "ends at once. `ooze resume RUN` goes on either way.\n"
                            "Exit codes: 0 asked, 1 nobody there to ask, 2 wrong usage.\n";

int command_stop(int argc, char **argv)
{
    bool now = false;
    const struct option_spec specs[] = {{"now", NULL, &now}, {0}};
    struct error err;
    json_t *reply;
    int n, rc = options_parse("stop", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 1) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    json_t *args = json_pack("{s:b}", "drain", !now);
    enum status s = query_run(argv[0], "stop", args, 5000, &reply, &err);
    json_decref(args);
    if (s)
        return command_fail("stop", &err);
    json_decref(reply);
    printf(now ? "%s is stopping now\n" : "%s is draining; `ooze status %s` shows how far it is\n", argv[0],
           argv[0]);
    return EXIT_DONE;
}
