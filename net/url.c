// URLs: parsing for checks, refusal of addresses nobody may call, percent encoding. Pure functions; any
// thread.
#include "net/url.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

// "a.b.c.d" of plain decimals without leading zeros, and nothing else.
static bool ipv4_parse(const char *host, struct in_addr *ret)
{
    return inet_pton(AF_INET, host, ret) == 1; // accepts exactly the dotted form
}

// Would a resolver that knows the old spellings (0x7f.1, 2130706433) take it for an IPv4 address?
static bool ipv4_odd_spelling(const char *host)
{
    struct in_addr a, b;
    return inet_aton(host, &a) && !(ipv4_parse(host, &b) && a.s_addr == b.s_addr);
}

static enum status parse_port(const char *s, size_t n, int *ret_port)
{
    int port = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isdigit((unsigned char)s[i]) || (port = port * 10 + (s[i] - '0')) > 65535) {
            return STATUS_INVALID;
        }
    }
    if (n == 0 || port == 0) {
        return STATUS_INVALID;
    }
    *ret_port = port;
    return STATUS_OK;
}

// host or [v6], lower-cased, into u->host; returns what follows it, NULL if malformed.
static const char *parse_host(const char *s, const char *end, struct url *u)
{
    const char *host = s, *stop;
    bool v6 = s < end && *s == '[';
    if (v6) {
        host++;
        stop = memchr(host, ']', (size_t)(end - host));
    } else {
        stop = memchr(host, ':', (size_t)(end - host));
        stop = stop ? stop : end;
    }
    if (!stop || stop == host || (size_t)(stop - host) >= sizeof(u->host)) {
        return NULL;
    }
    for (size_t i = 0; host + i < stop; i++) {
        unsigned char c = (unsigned char)host[i];
        if (!isalnum(c) && !strchr(v6 ? ":." : ".-_", c)) {
            return NULL;
        }
        u->host[i] = (char)tolower(c);
    }
    u->host[stop - host] = 0;
    struct in6_addr a6;
    if (v6 ? inet_pton(AF_INET6, u->host, &a6) != 1 : ipv4_odd_spelling(u->host)) {
        return NULL;
    }
    return stop + (v6 ? 1 : 0);
}

enum status url_parse(const char *text, struct url *ret_url, struct error *err)
{
    struct url u = {0};
    size_t n = strlen(text);
    if (n >= URL_MAX) {
        return error_set(err, STATUS_INVALID, "url of %zu bytes: longer than %d", n, URL_MAX - 1);
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= ' ' || c >= 0x7f || c == '\\' || c == '#') {
            return error_set(err, STATUS_INVALID, "url: byte %zu (0x%02x) is not allowed: percent-encode it",
                             i, c);
        }
    }
    const char *authority;
    if (strncasecmp(text, "http://", 7) == 0) {
        authority = text + 7;
    } else if (strncasecmp(text, "https://", 8) == 0) {
        authority = text + 8;
        u.tls = true;
    } else {
        return error_set(err, STATUS_UNSUPPORTED, "url \"%s\": only http:// and https:// are allowed", text);
    }
    const char *end = authority + strcspn(authority, "/?");
    if (memchr(authority, '@', (size_t)(end - authority))) {
        return error_set(err, STATUS_INVALID,
                         "url: user names and passwords before the host are not allowed");
    }
    const char *rest = parse_host(authority, end, &u);
    if (!rest) {
        return error_set(err, STATUS_INVALID, "url \"%s\": malformed host", text);
    }
    u.port = u.tls ? 443 : 80;
    if (rest != end &&
        (*rest != ':' || parse_port(rest + 1, (size_t)(end - rest - 1), &u.port) != STATUS_OK)) {
        return error_set(err, STATUS_INVALID, "url \"%s\": malformed port", text);
    }
    if (*end == '?') {
        u.path[0] = '/'; // fits: the scheme went
        memcpy(u.path + 1, end, strlen(end) + 1);
    } else {
        const char *path = *end ? end : "/";
        memcpy(u.path, path, strlen(path) + 1);
    }
    *ret_url = u;
    return STATUS_OK;
}

static bool ipv4_forbidden(uint32_t a) // host byte order
{
    return a >> 16 == 0xA9FE   // 169.254/16: link-local, most clouds' metadata
           || a == 0x646464C8  // 100.100.100.200: Alibaba's
           || a == 0xC00000C0  // 192.0.0.192: Oracle's
           || a == 0xA83F8110  // 168.63.129.16: Azure's
           || a >> 28 == 0xE   // multicast
           || a == 0xFFFFFFFF; // broadcast
}

static bool ipv6_forbidden(const uint8_t a[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static const uint8_t nat64[12] = {0, 0x64, 0xff, 0x9b};
    static const uint8_t compat[12] = {0};
    static const uint8_t ec2[16] = {0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54};
    uint32_t low = (uint32_t)a[12] << 24 | (uint32_t)a[13] << 16 | (uint32_t)a[14] << 8 | a[15];
    if (memcmp(a, mapped, 12) == 0 || memcmp(a, nat64, 12) == 0 || memcmp(a, compat, 12) == 0) {
        return ipv4_forbidden(low);
    }
    if (a[0] == 0x20 && a[1] == 0x02) { // 6to4 carries its IPv4 address in bytes 2 to 5
        return ipv4_forbidden((uint32_t)a[2] << 24 | (uint32_t)a[3] << 16 | (uint32_t)a[4] << 8 | a[5]);
    }
    return (a[0] == 0xfe && (a[1] & 0xc0) == 0x80) || a[0] == 0xff || memcmp(a, ec2, 16) == 0;
}

bool url_address_forbidden(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        return ipv4_forbidden(ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr));
    }
    if (address->sa_family == AF_INET6) {
        return ipv6_forbidden(((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr);
    }
    return true;
}

enum status url_check(const char *text, struct error *err)
{
    struct url u;
    enum status s = url_parse(text, &u, err);
    if (s != STATUS_OK) {
        return s;
    }
    size_t n = strlen(u.host);
    if (n > 1 && u.host[n - 1] == '.') {
        u.host[n - 1] = 0; // an absolute name
    }
    struct sockaddr_in a4 = {.sin_family = AF_INET};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6};
    bool bad = strcmp(u.host, "metadata") == 0 || strcmp(u.host, "metadata.google.internal") == 0;
    if (ipv4_parse(u.host, &a4.sin_addr)) {
        bad = url_address_forbidden((struct sockaddr *)&a4);
    } else if (inet_pton(AF_INET6, u.host, &a6.sin6_addr) == 1) {
        bad = url_address_forbidden((struct sockaddr *)&a6);
    }
    if (bad) {
        return error_set(err, STATUS_REFUSED,
                         "url \"%s\": link-local, multicast and metadata addresses are refused", text);
    }
    return STATUS_OK;
}

bool url_host_is_loopback(const char *host)
{
    struct in_addr a4;
    struct in6_addr a6;
    if (ipv4_parse(host, &a4)) {
        return ntohl(a4.s_addr) >> 24 == 127;
    }
    if (inet_pton(AF_INET6, host, &a6) == 1) {
        return IN6_IS_ADDR_LOOPBACK(&a6) || (IN6_IS_ADDR_V4MAPPED(&a6) && a6.s6_addr[12] == 127);
    }
    return strcasecmp(host, "localhost") == 0;
}

void url_put_segment(struct buf *b, const char *s, size_t n)
{
    bool dots = (n == 1 && s[0] == '.') || (n == 2 && s[0] == '.' && s[1] == '.'); // would be normalised away
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool plain = (c < 0x80 && isalnum(c)) || c == '-' || c == '_' || c == '~' || (c == '.' && !dots);
        if (plain) {
            buf_putc(b, (char)c);
        } else {
            buf_printf(b, "%%%02X", c);
        }
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

enum status url_decode(const char *s, size_t n, bool form, char **ret_text, struct error *err)
{
    char *out = mem_must(n + 1, 1);
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '%') {
            int hi = -1, lo = -1;
            if (n - i > 2) {
                hi = hex_digit(s[i + 1]);
                lo = hex_digit(s[i + 2]);
            }
            if (hi < 0 || lo < 0) {
                free(out);
                return error_set(err, STATUS_INVALID, "byte %zu: broken percent escape", i);
            }
            c = (char)(hi * 16 + lo);
            i += 2;
        } else if (c == '+' && form) {
            c = ' ';
        }
        if (c == 0) {
            free(out);
            return error_set(err, STATUS_INVALID, "byte %zu: NUL is not allowed", i);
        }
        out[len++] = c;
    }
    *ret_text = out;
    return STATUS_OK;
}

char *url_join(const char *base, const char *rest)
{
    size_t n = strlen(base);
    while (n && base[n - 1] == '/') {
        n--;
    }
    return mem_printf("%.*s/%s", (int)n, base, rest + strspn(rest, "/"));
}
