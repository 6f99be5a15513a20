// A whole small HTTP service in one call, for task services: options, loop, server, signals, exit code.
//
//   static void on_health(void *ctx, struct http_request *r) { http_reply(r, 200, "application/json", "{}",
//   2); } static const struct http_route routes[] = {{"GET", "/health", on_health}}; int main(int argc, char
//   **argv) { return service_main(argc, argv, "sort", routes, 1, NULL); }
#ifndef NET_SERVICE_H
#define NET_SERVICE_H

#include "net/http_server.h"

// Options: --host ADDRESS [127.0.0.1], --port N [0 = any free], --port-file PATH (the port in decimal and a
// newline, written atomically once the service listens), --token-file PATH (bearer token for mutating calls),
// --help. Prints "NAME listening on http://host:port" to stdout. Ends with 0 on SIGTERM or SIGINT, 1 on a
// failure (said on stderr), 2 on wrong usage.
int service_main(int argc, char **argv, const char *name, const struct http_route *routes, size_t n_routes,
                 void *ctx);

#endif
