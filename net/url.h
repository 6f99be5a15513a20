// URLs of task services and other peers: what is allowed, how segments are encoded. Pure functions, any
// thread.
#ifndef NET_URL_H
#define NET_URL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/status.h"

#define URL_HOST_MAX 254
#define URL_MAX      2048

struct url {
    bool tls;
    char host[URL_HOST_MAX]; // lower case, IPv6 without brackets
    int port;                // 80 or 443 when not given
    char path[URL_MAX];      // with the query, "/" when empty
};

// http and https only; no user:password@, no fragment, no spaces or control characters, no odd spellings of
// IPv4 addresses (0x7f.1, 017700000001). STATUS_INVALID, STATUS_UNSUPPORTED (scheme).
enum status url_parse(const char *text, struct url *ret_url, struct error *err) OOZE_MUST_USE;
// url_parse, and STATUS_REFUSED for link-local, multicast and cloud-metadata addresses and names. Names are
// checked again by address when they are connected to (net/http_client.h).
enum status url_check(const char *text, struct error *err) OOZE_MUST_USE;
// True for addresses nobody may call: 169.254/16, fe80::/10, fd00:ec2::254, other clouds' metadata addresses,
// multicast; also mapped or translated into IPv6.
bool url_address_forbidden(const struct sockaddr *address);
// 127/8 or ::1 (also mapped), or the name localhost.
bool url_host_is_loopback(const char *host);

// Appends s with everything but A-Z a-z 0-9 - . _ ~ percent-encoded. A segment "." or ".." is encoded, too.
void url_put_segment(struct buf *b, const char *s, size_t n);
// Decodes %XX (and '+' as space when form is set) into a fresh string. STATUS_INVALID: broken escape, NUL.
enum status url_decode(const char *s, size_t n, bool form, char **ret_text, struct error *err) OOZE_MUST_USE;
// "http://host/base/" and a printf'ed rest → one URL with exactly one '/' between; free() it.
char *url_join(const char *base, const char *rest);

#endif
