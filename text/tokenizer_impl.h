// The inside of struct tokenizer, shared by tokenizer.c (use) and tokenizer_load.c (reading tokenizer.json).
#ifndef TEXT_TOKENIZER_IMPL_H
#define TEXT_TOKENIZER_IMPL_H

#include "base/json.h"
#include "text/added.h"
#include "text/bpe.h"
#include "text/pretoken.h"
#include "text/tokenizer.h"

struct tokenizer {
    bool bytes; // ids 0…255 are bytes; bpe holds pieces only
    bool nfc;
    struct bpe bpe;
    struct pretoken pretoken;
    struct added raw;        // added tokens looked for in the text as it came
    struct added normalized; // and those looked for after normalisation
    int32_t bos, eos, pad;
    struct buf source; // the tokenizer.json
};

// Fills a zeroed tokenizer from the document; `what` names it in errors. On failure the caller closes t.
enum status tokenizer_load_bpe(struct tokenizer *t, const json_t *doc, const char *what,
                               struct error *err) OOZE_MUST_USE;
enum status tokenizer_load_bytes(struct tokenizer *t, const char *const *specials, size_t n, const char *what,
                                 struct error *err) OOZE_MUST_USE;

#endif
