// Routes of the HTTP server: method and path pattern to handler. Runs on the loop's thread; keeps no state.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "net/http_internal.h"
#include "net/url.h"

// Matches segment by segment on the path as sent, so that an encoded slash stays inside its segment. With
// captures, the values of {name} segments are decoded into them (http_request_check has seen that they can
// be).
static bool match(const char *pattern, const char *path, struct http_pairs *captures)
{
    while (*pattern == '/' && *path == '/') {
        pattern++;
        path++;
        size_t n_pattern = strcspn(pattern, "/"), n_path = strcspn(path, "/");
        if (n_pattern > 2 && pattern[0] == '{' && pattern[n_pattern - 1] == '}') {
            if (n_path == 0) {
                return false;
            }
            char *value;
            if (captures && captures->n < HTTP_CAPTURES_MAX &&
                url_decode(path, n_path, false, &value, NULL) == STATUS_OK) {
                http_pairs_add(captures, pattern + 1, n_pattern - 2, value);
            }
        } else if (n_pattern != n_path || memcmp(pattern, path, n_path) != 0) {
            return false;
        }
        pattern += n_pattern;
        path += n_path;
    }
    return !*pattern && !*path;
}

void http_route_dispatch(const struct http_route *routes, size_t n_routes, void *ctx, struct http_request *r)
{
    const char *method = strcmp(r->method, "HEAD") == 0 ? "GET" : r->method;
    struct buf allow = {0};
    for (size_t i = 0; i < n_routes; i++) {
        if (!match(routes[i].pattern, r->path, NULL)) {
            continue;
        }
        if (strcmp(routes[i].method, method) == 0) {
            match(routes[i].pattern, r->path, &r->captures);
            buf_done(&allow);
            routes[i].fn(ctx, r);
            return;
        }
        buf_printf(&allow, "%s%s", allow.len ? ", " : "", routes[i].method);
    }
    if (allow.len) {
        http_reply_header(r, "Allow", allow.data);
        http_reply_error(r, 405, NULL, "%s is not served with %s here, only with %s", r->path, r->method,
                         allow.data);
    } else {
        http_reply_error(r, 404, NULL, "nothing is served at %s", r->path);
    }
    buf_done(&allow);
}
