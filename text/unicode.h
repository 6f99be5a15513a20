// What Unicode says of characters, as far as tokenizers ask: utf8proc's tables behind three questions.
// Room-internal. Pure functions, any thread.
#ifndef TEXT_UNICODE_H
#define TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

bool unicode_is_space(uint32_t cp); // the property White_Space
bool unicode_is_word(
    uint32_t cp); // \w of UTS 18: Alphabetic, Mark, Decimal_Number, Connector_Punctuation, Join_Control
bool unicode_is_numeric(uint32_t cp); // general category N: Rust's char::is_numeric

// Appends the canonical composition (NFC) of s, valid UTF-8, to out.
enum status unicode_nfc(const char *s, size_t n, struct buf *out, struct error *err) OOZE_MUST_USE;
// Whether NFC could change s at all: false only for text without combining marks and composed scripts.
bool unicode_may_compose(const char *s, size_t n);

#endif
