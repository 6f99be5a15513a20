// detokenizer: ids to characters, one at a time, for streams. See tokenizer.h.
//
// Invariant: held is a proper prefix of a well-formed UTF-8 sequence, hence at most three bytes.
#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer.h"

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool skip_markers)
{
    *d = (struct detokenizer){.tokenizer = t, .skip_markers = skip_markers};
}

void detokenizer_push(struct detokenizer *d, int32_t id, struct buf *out)
{
    struct buf bytes = {0};
    buf_append(&bytes, d->held, d->n_held);
    tokenizer_decode(d->tokenizer, &id, 1, d->skip_markers, &bytes);
    d->n_held = 0;
    size_t at = 0;
    while (at < bytes.len) {
        size_t good = utf8_valid_prefix(bytes.data + at, bytes.len - at);
        buf_append(out, bytes.data + at, good);
        at += good;
        if (at == bytes.len)
            break;
        bool incomplete;
        size_t bad = utf8_bad_length(bytes.data + at, bytes.len - at, &incomplete);
        if (incomplete) {
            memcpy(d->held, bytes.data + at, bad);
            d->n_held = bad;
        } else {
            buf_puts(out, "\xEF\xBF\xBD");
        }
        at += bad;
    }
    buf_done(&bytes);
}

void detokenizer_finish(struct detokenizer *d, struct buf *out)
{
    utf8_repair(out, d->held, d->n_held);
    d->n_held = 0;
}
