// chat_json: JSON text as the templates' tojson filter writes it: json.dumps(…, ensure_ascii=False), that is ", " and ": ",
// members in the order they came, floats by repr. Prompts were trained with exactly these bytes. Pure functions.
#include <stdlib.h>
#include <string.h>

#include "base/real.h"
#include "text/chat_impl.h"

static void put_string(struct buf *b, const char *s, size_t n)
{
    buf_putc(b, '"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
        const char *at = c ? strchr(from, c) : NULL;
        if (at) {
            buf_putc(b, '\\');
            buf_putc(b, to[at - from]);
        } else if (c < 0x20) {
            buf_printf(b, "\\u%04x", c);
        } else {
            buf_putc(b, (char)c);
        }
    }
    buf_putc(b, '"');
}

// Python's repr of a float: the shortest digits that read back, scientific outside 1e-4 … 1e16.
static void put_real(struct buf *b, double x)
{
    char text[40];
    int digits = real_digits(x);
    snprintf(text, sizeof text, "%.*e", digits - 1, x);
    char *e = strchr(text, 'e');
    int exponent = atoi(e + 1);
    if (exponent < -4 || exponent >= 16) {
        *e = '\0';
        buf_printf(b, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals = digits - 1 - exponent;
    buf_printf(b, "%.*f", decimals > 0 ? decimals : 1, x);
}

void chat_put_json(struct buf *b, const json_t *j)
{
    const char *sep = "", *key;
    json_t *value;
    size_t i;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        buf_putc(b, '{');
        json_object_foreach((json_t *)j, key, value)
        {
            buf_puts(b, sep);
            put_string(b, key, strlen(key));
            buf_puts(b, ": ");
            chat_put_json(b, value);
            sep = ", ";
        }
        buf_putc(b, '}');
        break;
    case JSON_ARRAY:
        buf_putc(b, '[');
        json_array_foreach(j, i, value)
        {
            buf_puts(b, sep);
            chat_put_json(b, value);
            sep = ", ";
        }
        buf_putc(b, ']');
        break;
    case JSON_STRING:
        put_string(b, json_string_value(j), json_string_length(j));
        break;
    case JSON_INTEGER:
        buf_printf(b, "%" JSON_INTEGER_FORMAT, json_integer_value(j));
        break;
    case JSON_REAL:
        put_real(b, json_real_value(j));
        break;
    default:
        buf_puts(b, json_is_true(j) ? "true" : json_is_false(j) ? "false" : "null");
    }
}

void chat_put_arguments(struct buf *b, const json_t *arguments)
{
    if (!arguments || json_is_null(arguments)) {
        buf_puts(b, "{}");
        return;
    }
    if (!json_is_string(arguments)) {
        chat_put_json(b, arguments);
        return;
    }
    json_t *doc = NULL;
    struct error err;
    if (json_parse(json_string_value(arguments), json_string_length(arguments), "arguments", &doc, &err) ==
        STATUS_OK)
        chat_put_json(b, doc);
    else
        buf_append(b, json_string_value(arguments), json_string_length(arguments));
    json_decref(doc);
}

const json_t *chat_call_function(const json_t *call)
{
    const json_t *f = json_object_get(call, "function");
    return json_is_object(f) ? f : call;
}
