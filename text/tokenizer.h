// Text to token ids and back.
//
// Kinds: byte-level BPE of Hugging Face's tokenizer.json (GPT-2, SmolLM2, Llama 3, Qwen 2/2.5/3, GLM-4 and
// whatever else is made of the same parts), and our own byte tokenizer for tiny models,
// {"type":"ooze-bytes","specials":[…]}: ids 0…255 are the bytes, then one id for each named special, in
// order. Any other kind is STATUS_UNSUPPORTED with an error that names the file and the kind.
//
// Invariants
//   1. A tokenizer is immutable once open: any number of threads may use one; the state of a call lives in
//   the call.
//   2. TOKENIZER_PLAIN never yields a marker, whatever the text: a marker is an added token that is special
//   or
//      whose text has the form <…> or […]. Message and tool content is encoded so, hence cannot forge a turn.
//   3. Decoding the ids of a valid text gives the text again (its NFC form when the tokenizer normalises) as
//   long as
//      the vocabulary holds all 256 bytes (tokenizer_missing_bytes).
//   4. Input that is not valid UTF-8 is read as utf8_repair would write it; the byte tokenizer takes bytes as
//   they are.
//
// The post-processor of tokenizer.json (adding BOS) is ignored: which tokens start a prompt is the chat
// template's matter. Oracle: tests/golden/make_text.py, `tokenizers` itself.
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "text/tokens.h"

struct tokenizer;

enum tokenizer_mode {
    TOKENIZER_PLAIN,   // content: markers are ordinary text
    TOKENIZER_MARKERS, // trusted text: every added token is recognised, as Hugging Face does
};

// path: a model folder (its tokenizer.json; bos, eos, pad from tokenizer_config.json, generation_config.json
// and config.json, where present) or a tokenizer.json itself (then only an ooze-bytes file knows bos, eos and
// pad).
enum status tokenizer_open(const char *path, struct tokenizer **ret_tokenizer,
                           struct error *err) OOZE_MUST_USE;
// The same from memory; `what` names the source in errors.
enum status tokenizer_open_json(const char *data, size_t n, const char *what,
                                struct tokenizer **ret_tokenizer, struct error *err) OOZE_MUST_USE;
// Byte tokenizer with these specials: names of 1…32 letters, digits, '_', '-' or '/', all different. The text
// of special NAME is "<NAME>" (so CALL and /CALL read <CALL> and </CALL>). BOS, EOS and PAD are recognised by
// name.
enum status tokenizer_open_bytes(const char *const *specials, size_t n_specials,
                                 struct tokenizer **ret_tokenizer, struct error *err) OOZE_MUST_USE;
void tokenizer_close(struct tokenizer *t); // NULL is fine

// The specials of quickstart models and of the chat family "tiny": PAD BOS EOS CALL /CALL RES /RES ANS.
extern const char *const tokenizer_tiny_specials[];
extern const size_t tokenizer_n_tiny_specials;
// Writes the tokenizer.json that tokenizer_open reads back, so that a tiny model's folder records its
// tokenizer. A tokenizer that came from a file is written as that file's bytes.
enum status tokenizer_save(const struct tokenizer *t, const char *model_dir, struct error *err) OOZE_MUST_USE;

bool tokenizer_is_bytes(const struct tokenizer *t);
// Largest id + 1. A model's embedding may be larger (padding rows).
int32_t tokenizer_vocab_size(const struct tokenizer *t);
// -1 when there is none.
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_pad(const struct tokenizer *t);
// How many of the 256 bytes no token holds: such bytes become the unknown token, or vanish when there is
// none.
int tokenizer_missing_bytes(const struct tokenizer *t);

// Id of the token whose text is exactly s (added tokens first), -1 when there is none. Specials of a byte
// tokenizer are found as "<NAME>".
int32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t n);
// The bytes of a token; NULL and 0 for an id that is not in the vocabulary. Life: the tokenizer's.
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *ret_n);
bool tokenizer_is_marker(const struct tokenizer *t, int32_t id); // see invariant 2

// Appends the ids of text[0, n) to *out with the given mask. Errors: STATUS_LIMIT when a pre-tokenizer
// pattern gives up.
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, enum tokenizer_mode mode,
                             uint8_t mask, struct tokens *out, struct error *err) OOZE_MUST_USE;

// Appends the bytes of ids; with skip_markers those of markers are left out. Ids outside the vocabulary give
// nothing. The bytes of sampled ids need not be valid UTF-8: see utf8_repair and the detokenizer.
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_markers,
                      struct buf *out);

// Incremental decoding for streams: only whole characters leave; what can never become one leaves as U+FFFD,
// so the concatenation of everything equals utf8_repair of the decoded bytes.
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_markers;
    char held[4]; // the start of a character whose end has not come yet
    size_t n_held;
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool skip_markers);
void detokenizer_push(struct detokenizer *d, int32_t id, struct buf *out);
void detokenizer_finish(struct detokenizer *d,
                        struct buf *out); // a held start becomes U+FFFD; ready for reuse

#endif
