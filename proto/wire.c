// ZeroMQ sockets that carry struct msg: see wire.h. The thread that opened a wire owns it; libzmq's I/O thread and the
// ZAP handler's thread live inside and share nothing with it but queues.
//
// Invariants
//   1. Each wire has a context of its own: one key check per wire, and closing one disturbs no other.
//   2. in[0..n_in) are open zmq_msg_t exactly while the message handed out by wire_recv lives.
//   3. A multipart message is sent to its last part even after a part was refused: libzmq drops the rest of that
//      message, and would drop parts of the next one otherwise.
#include "proto/wire.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/codec.h"
#include "proto/zap.h"

#define LINGER_MS        1000
#define HWM              1000 // messages, per peer and direction
#define RECONNECT_MS     100
#define RECONNECT_MAX_MS 2000
#define ROUTER_FRAME_MAX ((int64_t)32 << 20)                      // JSON texts, token streams
#define DEALER_FRAME_MAX ((int64_t)MSG_BATCH_MAX * 4 + (1 << 20)) // arrays of a prepared step
#define ARENA_MAX        ((size_t)1 << 30)
#define GARBAGE_MAX      1024 // skipped in one wire_recv

struct wire {
    void *context, *socket;
    struct zap *zap;
    bool router, curve;
    char secret_key[41], public_key[41], server_key[41];
    char address[PATH_MAX];
    struct arena out, decoded;
    zmq_msg_t in[CODEC_FRAMES];
    int n_in;
    uint64_t garbage;
};

static enum status zmq_fail(struct error *err, const char *what, const char *where)
{
    enum status s = errno == EADDRINUSE ? STATUS_BUSY : errno == EINVAL ? STATUS_INVALID : STATUS_IO;
    return error_set(err, s, "%s %s: %s", what, where, zmq_strerror(errno));
}

// ---- opening ---------------------------------------------------------------------------------------------

static bool set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof(value)) == 0;
}

static enum status set_options(struct wire *w, const char *name, struct error *err)
{
    void *s = w->socket;
    int64_t most = w->router ? ROUTER_FRAME_MAX : DEALER_FRAME_MAX;
    bool ok = set_int(s, ZMQ_LINGER, LINGER_MS) && set_int(s, ZMQ_SNDHWM, HWM) &&
              set_int(s, ZMQ_RCVHWM, HWM) && set_int(s, ZMQ_TCP_KEEPALIVE, 1) &&
              zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &most, sizeof(most)) == 0;
    if (w->router)
        // handover: a client that comes back before its old connection is known to be dead keeps its name
        ok = ok && set_int(s, ZMQ_ROUTER_MANDATORY, 1) && set_int(s, ZMQ_ROUTER_HANDOVER, 1);
    else
        ok = ok && set_int(s, ZMQ_RECONNECT_IVL, RECONNECT_MS) &&
             set_int(s, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS) &&
             zmq_setsockopt(s, ZMQ_ROUTING_ID, name, strlen(name)) == 0;
    return ok ? STATUS_OK : zmq_fail(err, "preparing", "a socket");
}

static enum status copy_key(char dst[41], const char *key, const char *which, struct error *err)
{
    uint8_t raw[32];
    if (!key || strlen(key) != 40 || !zmq_z85_decode(raw, key))
        return error_set(err, STATUS_INVALID,
                         "the %s is no CURVE key (40 characters of Z85, from `ooze keys`)", which);
    memcpy(dst, key, 41);
    return STATUS_OK;
}

static enum status copy_curve(struct wire *w, const struct wire_curve *curve, struct error *err)
{
    if (!curve)
        return STATUS_OK;
    enum status rc = copy_key(w->secret_key, curve->secret_key, "secret key", err);
    if (rc == STATUS_OK)
        rc = copy_key(w->public_key, curve->public_key, "public key", err);
    if (rc == STATUS_OK && !w->router)
        rc = copy_key(w->server_key, curve->server_key, "server's key", err);
    if (rc == STATUS_OK && w->router && !curve->allow_file)
        rc = error_set(err, STATUS_INVALID, "CURVE needs a file of the client keys to admit");
    if (rc == STATUS_OK && w->router)
        rc = zap_open(w->context, curve->allow_file, &w->zap, err);
    w->curve = rc == STATUS_OK;
    return rc;
}

static enum status wire_new(bool router, const char *name, const struct wire_curve *curve, struct wire **ret,
                            struct error *err)
{
    struct wire *w = mem_must(1, sizeof(*w));
    enum status rc = STATUS_OK;
    w->router = router;
    arena_init(&w->out, ARENA_MAX);
    arena_init(&w->decoded, ARENA_MAX);
    w->context = zmq_ctx_new();
    if (w->context)
        w->socket = zmq_socket(w->context, router ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!w->socket)
        rc = zmq_fail(err, "opening", "a socket");
    if (rc == STATUS_OK)
        rc = set_options(w, name, err);
    if (rc == STATUS_OK)
        rc = copy_curve(w, curve, err);
    if (rc != STATUS_OK) {
        wire_close(w);
        return rc;
    }
    *ret = w;
    return STATUS_OK;
}

static bool is_loopback(const char *endpoint)
{
    static const char *const hosts[] = {"tcp://127.", "tcp://localhost:", "tcp://[::1]:"};
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++)
        if (strncmp(endpoint, hosts[i], strlen(hosts[i])) == 0)
            return true;
    return false;
}

// Checks the endpoint, writes it with its transport into ret, and sets the socket's security for the bind or connect
// that follows: libzmq reads these options anew at each.
static enum status prepare_endpoint(struct wire *w, const char *endpoint, char *ret, size_t n,
                                    struct error *err)
{
    if (snprintf(ret, n, "%s%s", endpoint[0] == '/' ? "ipc://" : "", endpoint) >= (int)n)
        return error_set(err, STATUS_LIMIT, "endpoint too long: %.100s…", endpoint);
    bool tcp = strncmp(ret, "tcp://", 6) == 0;
    if (!tcp && strncmp(ret, "ipc:///", 7) != 0)
        return error_set(err, STATUS_INVALID, "endpoint '%.200s': ipc:///PATH or tcp://HOST:PORT expected",
                         endpoint);
    if (tcp && !w->curve && !is_loopback(ret))
        return error_set(err, STATUS_REFUSED,
                         "endpoint '%.200s' leaves this host: it needs CURVE keys (`ooze keys`)", endpoint);
    bool ok = true;
    if (tcp && w->curve && w->router)
        ok = set_int(w->socket, ZMQ_CURVE_SERVER, 1) &&
             zmq_setsockopt(w->socket, ZMQ_CURVE_SECRETKEY, w->secret_key, 41) == 0;
    else if (tcp && w->curve)
        ok = zmq_setsockopt(w->socket, ZMQ_CURVE_SERVERKEY, w->server_key, 41) == 0 &&
             zmq_setsockopt(w->socket, ZMQ_CURVE_PUBLICKEY, w->public_key, 41) == 0 &&
             zmq_setsockopt(w->socket, ZMQ_CURVE_SECRETKEY, w->secret_key, 41) == 0;
    else if (w->curve && w->router)
        ok = set_int(w->socket, ZMQ_CURVE_SERVER, 0); // ipc: the folder keeps strangers out
    return ok ? STATUS_OK : zmq_fail(err, "setting the keys of", ret);
}

// The folder of an ipc socket is ours and closed to everyone else; made when missing.
static enum status check_folder(const char *endpoint, struct error *err)
{
    char folder[PATH_MAX];
    struct stat st;
    snprintf(folder, sizeof(folder), "%s", endpoint + strlen("ipc://"));
    *strrchr(folder, '/') = 0;
    if (mkdir(folder[0] ? folder : "/", 0700) != 0 && errno != EEXIST)
        return error_errno(err, errno, "making the folder of %s", endpoint);
    if (stat(folder[0] ? folder : "/", &st) != 0)
        return error_errno(err, errno, "looking at the folder of %s", endpoint);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return error_set(err, STATUS_REFUSED, "%s: its folder must be ours alone (chmod 700)", endpoint);
    return STATUS_OK;
}

enum status wire_bind_more(struct wire *w, const char *endpoint, struct error *err)
{
    char full[PATH_MAX];
    enum status rc = prepare_endpoint(w, endpoint, full, sizeof(full), err);
    if (rc == STATUS_OK && strncmp(full, "ipc://", 6) == 0)
        rc = check_folder(full, err);
    if (rc != STATUS_OK)
        return rc;
    size_t n = sizeof(w->address);
    if (zmq_bind(w->socket, full) != 0 || zmq_getsockopt(w->socket, ZMQ_LAST_ENDPOINT, w->address, &n) != 0)
        return zmq_fail(err, "binding", full);
    return STATUS_OK;
}

enum status wire_bind(const char *endpoint, const struct wire_curve *curve, struct wire **ret,
                      struct error *err)
{
    struct wire *w = NULL;
    enum status rc = wire_new(true, NULL, curve, &w, err);
    if (rc == STATUS_OK)
        rc = wire_bind_more(w, endpoint, err);
    if (rc != STATUS_OK) {
        wire_close(w);
        return rc;
    }
    *ret = w;
    return STATUS_OK;
}

enum status wire_connect(const char *endpoint, const char *name, const struct wire_curve *curve,
                         struct wire **ret, struct error *err)
{
    struct wire *w = NULL;
    if (!*name || strlen(name) > WIRE_PEER_MAX)
        return error_set(err, STATUS_INVALID, "'%.80s': a name on the wire has 1 to %d bytes", name,
                         WIRE_PEER_MAX);
    enum status rc = wire_new(false, name, curve, &w, err);
    if (rc == STATUS_OK)
        rc = prepare_endpoint(w, endpoint, w->address, sizeof(w->address), err);
    if (rc == STATUS_OK && zmq_connect(w->socket, w->address) != 0)
        rc = zmq_fail(err, "connecting to", w->address);
    if (rc != STATUS_OK) {
        wire_close(w);
        return rc;
    }
    *ret = w;
    return STATUS_OK;
}

void wire_close(struct wire *w)
{
    if (!w)
        return;
    wire_release(w);
    if (w->socket)
        zmq_close(w->socket);
    while (w->context && zmq_ctx_term(w->context) != 0 && errno == EINTR)
        ;
    zap_close(w->zap);
    arena_done(&w->out);
    arena_done(&w->decoded);
    explicit_bzero(w->secret_key, sizeof(w->secret_key));
    free(w);
}

const char *wire_address(const struct wire *w)
{
    return w->address;
}

// ---- sending ---------------------------------------------------------------------------------------------

// One part; the bytes are copied. Returns 0 or an errno.
static int send_part(struct wire *w, const void *data, size_t n, bool more)
{
    zmq_msg_t part;
    if (zmq_msg_init_size(&part, n) != 0)
        return ENOMEM;
    if (n)
        memcpy(zmq_msg_data(&part), data, n);
    int flags = ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0), rc;
    while ((rc = zmq_msg_send(&part, w->socket, flags)) < 0 && errno == EINTR)
        ;
    if (rc >= 0)
        return 0;
    int e = errno;
    zmq_msg_close(&part);
    return e;
}

enum status wire_send(struct wire *w, const struct wire_peer *peer, const struct msg *m, struct error *err)
{
    struct codec_frame frames[CODEC_FRAMES];
    int n = 0, e = 0;
    if (w->router && (!peer || peer->n < 1 || peer->n > WIRE_PEER_MAX))
        return error_set(err, STATUS_INVALID, "%s: no peer is named", msg_type_name(m->type));
    arena_reset(&w->out);
    enum status rc = codec_encode(m, &w->out, frames, &n, err);
    if (rc != STATUS_OK)
        return rc;
    if (w->router)
        e = send_part(w, peer->id, (size_t)peer->n, true);
    bool started = w->router && e == 0;
    for (int i = 0; i < n && (e == 0 || started); i++) {
        int part = send_part(w, frames[i].data, frames[i].n, i + 1 < n);
        e = e ? e : part;
        started = started || part == 0;
    }
    if (e == 0)
        return STATUS_OK;
    if (e == EAGAIN)
        return error_set(err, STATUS_AGAIN, "%s: the queue is full", msg_type_name(m->type));
    if (e == EHOSTUNREACH)
        return error_set(err, STATUS_PEER, "%s: the peer is gone", msg_type_name(m->type));
    return error_set(err, e == ENOMEM ? STATUS_NOMEM : STATUS_IO, "sending %s: %s", msg_type_name(m->type),
                     zmq_strerror(e));
}

// ---- receiving -------------------------------------------------------------------------------------------

void wire_release(struct wire *w)
{
    for (int i = 0; i < w->n_in; i++)
        zmq_msg_close(&w->in[i]);
    w->n_in = 0;
    arena_reset(&w->decoded);
}

// Next part into `part`, initialised here and closed here on failure. Parts after the first never have to be waited for.
static int receive_part(struct wire *w, zmq_msg_t *part, bool *ret_more)
{
    int rc;
    zmq_msg_init(part);
    while ((rc = zmq_msg_recv(part, w->socket, ZMQ_DONTWAIT)) < 0 && errno == EINTR)
        ;
    if (rc < 0) {
        int e = errno;
        zmq_msg_close(part);
        return e;
    }
    *ret_more = zmq_msg_more(part);
    return 0;
}

// The connection's user id goes with what it sent; the routing id before that is libzmq's own making and has none. zap.c gives none
// that is too long.
static bool take_user(zmq_msg_t *part, struct wire_peer *ret)
{
    const char *user = zmq_msg_gets(part, "User-Id");
    size_t n = user ? strlen(user) : 0;
    if (n > WIRE_USER_MAX)
        return false;
    memcpy(ret->user, user ? user : "", n + 1);
    return true;
}

// A whole multipart message into w->in; surplus parts are thrown away and make it garbage (*ret_whole = false).
static int receive_parts(struct wire *w, struct wire_peer *peer, bool *ret_whole)
{
    bool more = true, whole = true;
    zmq_msg_t part;
    int e;
    if (w->router) {
        if ((e = receive_part(w, &part, &more)) != 0)
            return e;
        size_t n = zmq_msg_size(&part);
        whole = n >= 1 && n <= WIRE_PEER_MAX;
        if (whole && peer) {
            memset(peer, 0, sizeof(*peer));
            memcpy(peer->id, zmq_msg_data(&part), n);
            peer->n = (int32_t)n;
        }
        zmq_msg_close(&part);
    }
    while (more) {
        if ((e = receive_part(w, &part, &more)) != 0)
            return e;
        if (w->router && w->n_in == 0)
            whole = take_user(&part, peer) && whole;
        if (w->n_in < CODEC_FRAMES) {
            zmq_msg_init(&w->in[w->n_in]);
            zmq_msg_move(&w->in[w->n_in++], &part);
        } else {
            whole = false;
        }
        zmq_msg_close(&part);
    }
    *ret_whole = whole;
    return 0;
}

enum status wire_recv(struct wire *w, struct wire_peer *ret_peer, struct msg *ret, struct error *err)
{
    for (int tries = 0; tries < GARBAGE_MAX; tries++) {
        bool whole = false;
        struct codec_frame frames[CODEC_FRAMES];
        struct wire_peer peer = {.n = 0};
        struct error why;
        wire_release(w);
        int e = receive_parts(w, &peer, &whole);
        if (e == EAGAIN)
            return error_set(err, STATUS_AGAIN, "no message is waiting");
        if (e != 0)
            return error_set(err, STATUS_IO, "receiving: %s", zmq_strerror(e));
        for (int i = 0; i < w->n_in; i++)
            frames[i] = (struct codec_frame){zmq_msg_data(&w->in[i]), zmq_msg_size(&w->in[i])};
        if (whole && codec_decode(frames, w->n_in, &w->decoded, ret, &why) == STATUS_OK) {
            if (ret_peer)
                *ret_peer = peer;
            return STATUS_OK;
        }
        w->garbage++;
    }
    wire_release(w);
    return error_set(err, STATUS_AGAIN, "only garbage is waiting");
}

static enum status wait_for(struct wire *w, short events, const char *what, int timeout_ms, struct error *err)
{
    zmq_pollitem_t item = {.socket = w->socket, .events = events};
    int rc = zmq_poll(&item, 1, timeout_ms);
    if (rc > 0)
        return STATUS_OK;
    if (rc == 0 || errno == EINTR)
        return error_set(err, STATUS_TIMEOUT, "no %s within %d ms", what, timeout_ms);
    return error_set(err, STATUS_IO, "waiting for %s: %s", what, zmq_strerror(errno));
}

enum status wire_wait(struct wire *w, int timeout_ms, struct error *err)
{
    return wait_for(w, ZMQ_POLLIN, "message", timeout_ms, err);
}

enum status wire_wait_room(struct wire *w, int timeout_ms, struct error *err)
{
    return wait_for(w, ZMQ_POLLOUT, "room", timeout_ms, err);
}

void wire_linger(struct wire *w, int ms)
{
    (void)!set_int(w->socket, ZMQ_LINGER, ms); // valid on any open socket
}

uint64_t wire_garbage(const struct wire *w)
{
    return w->garbage;
}

int wire_fd(const struct wire *w)
{
    int fd = -1;
    size_t n = sizeof(fd);
    return zmq_getsockopt(w->socket, ZMQ_FD, &fd, &n) == 0 ? fd : -1;
}

static int events_now(const struct wire *w)
{
    int events = 0;
    size_t n = sizeof(events);
    return zmq_getsockopt(w->socket, ZMQ_EVENTS, &events, &n) == 0 ? events : 0;
}

int wire_pending(void *w)
{
    return events_now(w) & ZMQ_POLLIN;
}

bool wire_has_room(const struct wire *w)
{
    return events_now(w) & ZMQ_POLLOUT;
}

enum status wire_keypair(char ret_public[41], char ret_secret[41], struct error *err)
{
    char public[41], secret[41];
    if (zmq_curve_keypair(public, secret) != 0)
        return error_set(err, STATUS_UNSUPPORTED, "making CURVE keys: %s", zmq_strerror(errno));
    memcpy(ret_public, public, sizeof(public));
    memcpy(ret_secret, secret, sizeof(secret));
    explicit_bzero(secret, sizeof(secret));
    return STATUS_OK;
}
