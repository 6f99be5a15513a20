// What http_server.c, http_request.c, http_reply.c and http_route.c share. Only they include this.
#ifndef NET_HTTP_INTERNAL_H
#define NET_HTTP_INTERNAL_H

#include <microhttpd.h>

#include "base/buf.h"
#include "net/http_server.h"

struct http_pair { // strings owned
    char *name;
    char *value;
};
struct http_pairs {
    struct http_pair *v;
    size_t n;
};

// One accepted connection, in its server's list.
struct http_conn {
    struct http_conn *prev, *next;
    struct http_server *server;
    struct http_request *request; // the one MHD is working on, or NULL
    int fd;                       // MHD's
    int64_t deadline_ms;          // cut off when passed; 0 = none (a handler has the request)
};

enum http_reply_kind { HTTP_REPLY_NONE, HTTP_REPLY_WHOLE, HTTP_REPLY_STREAM };

struct http_server {
    struct http_server_config config; // strings owned
    bool loopback;
    bool fds_reserved;
    bool resumed; // a connection since the last MHD_run began
    int port;
    struct loop *loop;
    struct MHD_Daemon *daemon;
    struct loop_fd *watch;
    struct loop_timer *run_timer;   // MHD's own time-outs and "run again now"
    struct loop_timer *sweep_timer; // deadlines of connections
    struct http_conn conns;         // head of a ring
    int n_conns;
};

// A request belongs to MHD (mhd != NULL), to the handler (started && !ended), or both; freed when to neither.
struct http_request {
    struct loop *loop;
    struct http_server *server;   // NULL after http_server_close
    struct http_conn *conn;       // NULL once MHD let go
    struct MHD_Connection *mhd;   // NULL once MHD let go
    char *method, *target, *path; // target as sent; path: the same up to '?'
    struct http_pairs headers, query, captures;
    struct buf body;
    bool checked; // head seen
    int refusal;  // status to send instead of calling the handler; 0 = none
    const char *refusal_text;
    size_t discarded; // body bytes thrown away after a refusal
    bool started, ended, suspended, gone, aborted;
    int dup_fd; // our watch for the client's going while MHD is not looking; -1 = none
    struct loop_fd *hangup;
    http_handler *on_disconnect, *on_drain;
    void *disconnect_ctx, *drain_ctx, *data;
    enum http_reply_kind kind;
    int status;
    char *content_type;
    struct http_pairs extra; // headers of the reply
    struct buf out;          // whole reply, or what the stream has queued from out_head on
    size_t out_head;
    bool was_full;
};

#define HTTP_QUERY_MAX 64

// http_request.c
void http_pairs_add(struct http_pairs *p, const char *name, size_t name_len, char *value); // takes value
const char *http_pairs_get(const struct http_pairs *p, const char *name, bool ignore_case);
struct http_request *http_request_new(struct http_server *s, const char *target);
void http_request_free(struct http_request *r);
// Copies method and headers, parses the target; sets refusal where the head is not acceptable.
void http_request_check(struct http_request *r, const char *method);
void http_request_suspend(struct http_request *r);
void http_request_resume(struct http_request *r);
void http_request_unwatch(struct http_request *r);
// Tells the handler once that the client is gone; r may be freed by it when MHD has let go.
void http_request_lost(struct http_request *r);
// http_reply.c
enum MHD_Result http_request_send(struct http_request *r);
enum MHD_Result http_request_send_refusal(struct http_request *r);

#endif
