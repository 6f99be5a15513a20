// Replies of the HTTP server: whole ones and streams. A reply is only written down here; it leaves when MHD
// next asks (http_request_send, stream_read), which a resume brings about. Runs on the loop's thread.
//
//  1. http_reply*, http_stream_end and http_stream_abort set ended, once; after that the handler's pointer is
//  dead, and
//     where MHD has let go already the request is freed at once.
//  2. A stream that has nothing to send suspends its connection inside stream_read; a write, end or abort
//  resumes it.
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "net/http_internal.h"

#define STREAM_BLOCK_BYTES 16384

// ---- leaving ----

static ssize_t stream_read(void *cls, uint64_t pos, char *data, size_t max)
{
    (void)pos;
    struct http_request *r = cls;
    if (r->gone || r->aborted) {
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = r->out.len - r->out_head;
    if (n == 0) {
        if (r->ended) {
            return MHD_CONTENT_READER_END_OF_STREAM;
        }
        http_request_suspend(r);
        return 0;
    }
    n = n < max ? n : max;
    memcpy(data, r->out.data + r->out_head, n);
    r->out_head += n;
    if (r->out_head == r->out.len) {
        buf_clear(&r->out);
        r->out_head = 0;
    } else if (r->out_head > r->out.len / 2) {
        buf_consume(&r->out, r->out_head);
        r->out_head = 0;
    }
    if (r->was_full && r->out.len - r->out_head <= r->server->config.max_stream_bytes / 2) {
        r->was_full = false;
        if (r->on_drain && !r->ended) {
            r->on_drain(r->drain_ctx, r);
        }
    }
    return (ssize_t)n;
}

enum MHD_Result http_request_send(struct http_request *r)
{
    struct MHD_Response *response;
    if (r->kind == HTTP_REPLY_WHOLE) {
        size_t n = r->out.len;
        char *data = buf_take(&r->out, NULL);
        response = MHD_create_response_from_buffer(n, data, MHD_RESPMEM_MUST_FREE);
        if (!response) {
            free(data);
        }
        http_request_unwatch(r); // from here on MHD looks itself
    } else {
        response =
            MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, stream_read, r, NULL);
    }
    if (!response) {
        return MHD_NO;
    }
    if (r->content_type) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, r->content_type);
    }
    for (size_t i = 0; i < r->extra.n; i++) {
        MHD_add_response_header(response, r->extra.v[i].name, r->extra.v[i].value);
    }
    enum MHD_Result ok = MHD_queue_response(r->mhd, (unsigned)r->status, response);
    MHD_destroy_response(response);
    return ok;
}

static const char *type_of_status(int status)
{
    return status >= 500   ? "server_error"
           : status == 401 ? "authentication_error"
           : status == 403 ? "permission_error"
           : status == 429 ? "rate_limit_error"
                           : "invalid_request_error";
}

static void put_error(struct buf *b, int status, const char *type, const char *text)
{
    type = type ? type : type_of_status(status);
    buf_puts(b, "{\"error\":{\"message\":");
    json_put_string(b, text, strlen(text));
    buf_puts(b, ",\"type\":");
    json_put_string(b, type, strlen(type));
    buf_puts(b, ",\"param\":null,\"code\":null}}");
}

enum MHD_Result http_request_send_refusal(struct http_request *r)
{
    r->kind = HTTP_REPLY_WHOLE;
    r->status = r->refusal;
    r->content_type = mem_strdup("application/json");
    // Whoever sends such a head may have more of the kind behind it: no second request on this connection.
    http_reply_header(r, "Connection", "close");
    if (r->refusal == 401) {
        http_reply_header(r, "WWW-Authenticate", "Bearer");
    }
    put_error(&r->out, r->refusal, NULL, r->refusal_text);
    return http_request_send(r);
}

// ---- writing down ----

// The handler is done with r: wake MHD, or free it where MHD is done, too.
static void end(struct http_request *r)
{
    assert(r->started && !r->ended);
    r->ended = true;
    if (!r->mhd) {
        http_request_free(r);
    } else {
        http_request_resume(r);
    }
}

static void begin(struct http_request *r, enum http_reply_kind kind, int status, const char *content_type)
{
    assert(r->kind == HTTP_REPLY_NONE && "a request is answered once");
    r->kind = kind;
    r->status = status;
    r->content_type = content_type ? mem_strdup(content_type) : NULL;
}

void http_reply_header(struct http_request *r, const char *name, const char *value)
{
    http_pairs_add(&r->extra, name, strlen(name), mem_strdup(value));
}

void http_reply(struct http_request *r, int status, const char *content_type, const void *body, size_t n)
{
    begin(r, HTTP_REPLY_WHOLE, status, content_type);
    if (n) {
        buf_append(&r->out, body, n);
    }
    end(r);
}

void http_reply_json(struct http_request *r, int status, const json_t *j)
{
    char *text = json_text(j);
    http_reply(r, status, "application/json", text, strlen(text));
    free(text);
}

void http_reply_error(struct http_request *r, int status, const char *type, const char *fmt, ...)
{
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    begin(r, HTTP_REPLY_WHOLE, status, "application/json");
    put_error(&r->out, status, type, text);
    end(r);
}

// ---- streams ----

void http_stream_begin(struct http_request *r, int status, const char *content_type)
{
    begin(r, HTTP_REPLY_STREAM, status, content_type);
    if (strcmp(content_type, "text/event-stream") == 0) {
        http_reply_header(r, "Cache-Control", "no-cache");
    }
    http_request_resume(r);
}

// Room for n more bytes, or the status to give back.
static enum status stream_room(struct http_request *r, size_t n)
{
    assert(r->kind == HTTP_REPLY_STREAM && !r->ended);
    if (r->gone || !r->mhd) {
        return STATUS_CANCELED;
    }
    size_t queued = r->out.len - r->out_head;
    if (queued && queued + n > r->server->config.max_stream_bytes) {
        r->was_full = true;
        return STATUS_AGAIN;
    }
    return STATUS_OK;
}

enum status http_stream_write(struct http_request *r, const void *data, size_t n)
{
    enum status s = stream_room(r, n);
    if (s == STATUS_OK && n) {
        buf_append(&r->out, data, n);
        http_request_resume(r);
    }
    return s;
}

enum status http_stream_event(struct http_request *r, const char *text, size_t n)
{
    enum status s = stream_room(r, n + 8);
    if (s == STATUS_OK) {
        buf_append(&r->out, "data: ", 6);
        buf_append(&r->out, text, n);
        buf_append(&r->out, "\n\n", 2);
        http_request_resume(r);
    }
    return s;
}

void http_stream_on_drain(struct http_request *r, http_handler *fn, void *ctx)
{
    r->on_drain = fn;
    r->drain_ctx = ctx;
}

void http_stream_end(struct http_request *r)
{
    assert(r->kind == HTTP_REPLY_STREAM);
    end(r);
}

void http_stream_abort(struct http_request *r)
{
    r->aborted = true;
    end(r);
}
