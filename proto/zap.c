// ZAP handler: see zap.h. Its thread owns the socket from zap_open on; nothing else is shared but the file's name.
#include "proto/zap.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "proto/wire.h"

#define KEY_BYTES 32
#define KEY_Z85   40
#define ALLOW_MAX ((size_t)1 << 20)
#define FRAME_MAX 256
#define N_REQUEST 7 // version, request id, domain, address, routing id, mechanism, client key

struct zap {
    void *socket;
    char *allow_file;
    pthread_t thread;
};

// The user id of a key on the list: the word beside it. A key that stands alone is called by itself, since an empty user id would
// not be told from a connection without keys; so is one whose word is too long.
static bool key_allowed(const char *allow_file, const uint8_t key[KEY_BYTES],
                        char ret_user[WIRE_USER_MAX + 1])
{
    char z85[KEY_Z85 + 1], *text = NULL;
    size_t n;
    bool found = false;
    if (!zmq_z85_encode(z85, key, KEY_BYTES) ||
        file_read(allow_file, ALLOW_MAX, &text, &n, NULL) != STATUS_OK)
        return false;
    for (char *line = text; line && !found; line = strchr(line, '\n')) {
        line += strspn(line, " \t\r\n");
        size_t length = strcspn(line, " \t\r\n");
        found = *line != '#' && length == KEY_Z85 && memcmp(line, z85, KEY_Z85) == 0;
        if (!found)
            continue;
        const char *word = line + length + strspn(line + length, " \t");
        size_t n_word = *word == '#' ? 0 : strcspn(word, " \t\r\n");
        bool named = n_word > 0 && n_word <= WIRE_USER_MAX && utf8_valid_prefix(word, n_word) == n_word;
        memcpy(ret_user, named ? word : z85, named ? n_word : KEY_Z85);
        ret_user[named ? n_word : KEY_Z85] = 0;
    }
    free(text);
    return found;
}

struct request {
    uint8_t frame[N_REQUEST][FRAME_MAX];
    int bytes[N_REQUEST];
    int n;
    bool whole; // no frame too long, none too many
};

// False when the context has ended.
static bool request_receive(void *socket, struct request *r)
{
    *r = (struct request){.whole = true};
    int more = 1;
    while (more) {
        uint8_t spare[FRAME_MAX];
        uint8_t *to = r->n < N_REQUEST ? r->frame[r->n] : spare;
        int got = zmq_recv(socket, to, FRAME_MAX, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return false;
        r->whole = r->whole && got <= FRAME_MAX && r->n < N_REQUEST;
        if (r->n < N_REQUEST)
            r->bytes[r->n++] = got;
        size_t size = sizeof(more);
        if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) != 0)
            return false;
    }
    return true;
}

static bool frame_is(const struct request *r, int i, const char *text)
{
    return r->bytes[i] == (int)strlen(text) && memcmp(r->frame[i], text, strlen(text)) == 0;
}

static bool request_allowed(const struct zap *z, const struct request *r, char ret_user[WIRE_USER_MAX + 1])
{
    return r->whole && r->n == N_REQUEST && frame_is(r, 0, "1.0") && frame_is(r, 5, "CURVE") &&
           r->bytes[6] == KEY_BYTES && key_allowed(z->allow_file, r->frame[6], ret_user);
}

static void request_answer(void *socket, const struct request *r, bool allowed, const char *user)
{
    const char *code = allowed ? "200" : "400", *text = allowed ? "OK" : "this key is not on the list";
    int n_id = r->whole && r->n > 1 ? r->bytes[1] : 0;
    // the answer to a request always finds room; a failure can only mean that the context ends
    zmq_send(socket, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(socket, r->frame[1], (size_t)n_id, ZMQ_SNDMORE);
    zmq_send(socket, code, 3, ZMQ_SNDMORE);
    zmq_send(socket, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(socket, user, strlen(user), ZMQ_SNDMORE);
    zmq_send(socket, "", 0, 0); // metadata
}

static void *zap_main(void *arg)
{
    struct zap *z = arg;
    struct request request;
    while (request_receive(z->socket, &request)) {
        char user[WIRE_USER_MAX + 1] = "";
        bool allowed = request_allowed(z, &request, user);
        request_answer(z->socket, &request, allowed, user);
    }
    zmq_close(z->socket);
    return NULL;
}

enum status zap_open(void *zmq_context, const char *allow_file, struct zap **ret, struct error *err)
{
    int linger = 0;
    struct zap *z = mem_must(1, sizeof(*z));
    sigset_t all, before;
    z->socket = zmq_socket(zmq_context, ZMQ_REP);
    if (!z->socket || zmq_setsockopt(z->socket, ZMQ_LINGER, &linger, sizeof(linger)) != 0 ||
        zmq_bind(z->socket, "inproc://zeromq.zap.01") != 0) {
        enum status rc = error_set(err, STATUS_IO, "starting the key check: %s", zmq_strerror(errno));
        if (z->socket)
            zmq_close(z->socket);
        free(z);
        return rc;
    }
    z->allow_file = mem_strdup(allow_file);
    sigfillset(&all); // signals belong to the thread that owns the wire
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&z->thread, NULL, zap_main, z);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        zmq_close(z->socket);
        free(z->allow_file);
        free(z);
        return error_errno(err, failed, "starting the key check's thread");
    }
    *ret = z;
    return STATUS_OK;
}

void zap_close(struct zap *z)
{
    if (!z)
        return;
    pthread_join(z->thread, NULL);
    free(z->allow_file);
    free(z);
}
