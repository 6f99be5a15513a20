// JSON: jansson for documents (strict, exact int64, line:column in errors), own code for long arrays of
// numbers, where jansson is ten times slower. Rooms include this header, not jansson.h.
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

// Parses one document; refuses duplicate keys, trailing junk, depth over 64 and NaN. `what` names the source
// in errors ("reply of task sort"). json_decref the result.
enum status json_parse(const char *data, size_t n, const char *what, json_t **ret,
                       struct error *err) OOZE_MUST_USE;
enum status json_parse_file(const char *path, size_t max_bytes, json_t **ret,
                            struct error *err) OOZE_MUST_USE;

// Compact, sorted by insertion, reals with 17 significant digits; free() the result, never NULL. j is a document: json_pack returns
// NULL for texts that are not UTF-8, which is for its caller to see to (struct error's text always is, see utf8_mend for others).
char *json_text(const json_t *j);

// Typed members of an object. A missing member yields the default when `required` is false; a member of the
// wrong type or out of range is an error that names `what` and the key.
enum status json_get_string(const json_t *obj, const char *key, bool required, const char *def,
                            const char *what, const char **ret, struct error *err) OOZE_MUST_USE;
enum status json_get_int(const json_t *obj, const char *key, bool required, int64_t def, int64_t min,
                         int64_t max, const char *what, int64_t *ret, struct error *err) OOZE_MUST_USE;
enum status json_get_real(const json_t *obj, const char *key, bool required, double def, double min,
                          double max, const char *what, double *ret,
                          struct error *err) OOZE_MUST_USE; // finite only
enum status json_get_bool(const json_t *obj, const char *key, bool required, bool def, const char *what,
                          bool *ret, struct error *err) OOZE_MUST_USE;

// [1,2,3] → int32 array (free()); at most max_n elements. Own parser: 300+ MB/s.
enum status json_parse_i32_array(const char *data, size_t n, size_t max_n, int32_t **ret, size_t *ret_n,
                                 size_t *ret_consumed, struct error *err) OOZE_MUST_USE;
void json_put_i32_array(struct buf *b, const int32_t *v, size_t n);
void json_put_f32_array(struct buf *b, const float *v, size_t n); // shortest text that reads back exactly
// Appends s as a JSON string with quotes; what is not UTF-8 becomes U+FFFD as utf8_repair would have it.
void json_put_string(struct buf *b, const char *s, size_t n);

#endif
