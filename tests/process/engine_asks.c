// What else the key of an engine opens: says QUERY with it, as `ooze` does on the run's own host, and prints the REPLY.
//
//   engine_asks tcp://HOST:PORT JOINFOLDER VERB      0 answered, 1 not, 2 wrong usage
//
// One thread.
#include <stdio.h>
#include <string.h>

#include "proto/keys.h"
#include "proto/wire.h"

#define WAIT_MS 60000

int main(int argc, char **argv)
{
    char path[512];
    struct keys k = {"", "", ""};
    struct wire *w = NULL;
    struct msg m;
    struct error err;
    if (argc != 4)
        return 2;
    snprintf(path, sizeof path, "%s/client.key", argv[2]);
    enum status rc = keys_read(path, true, &k, &err);
    const struct wire_curve curve = {k.secret, k.public, k.server, NULL};
    if (rc == STATUS_OK)
        rc = wire_connect(argv[1], "asks", &curve, &w, &err);
    const struct msg q = {.type = MSG_QUERY, .query = {.id = 1, .verb = argv[3], .args = "{}"}};
    if (rc == STATUS_OK)
        rc = wire_send(w, NULL, &q, &err);
    if (rc == STATUS_OK)
        rc = wire_wait(w, WAIT_MS, &err);
    if (rc == STATUS_OK)
        rc = wire_recv(w, NULL, &m, &err);
    if (rc != STATUS_OK)
        fprintf(stderr, "engine_asks: %s\n", err.text);
    else
        printf("%s %s\n", status_name((enum status)m.reply.status), m.reply.json);
    wire_close(w);
    keys_wipe(&k);
    return rc == STATUS_OK ? 0 : 1;
}
