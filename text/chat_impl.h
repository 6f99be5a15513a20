// The inside of struct chat and of one rendering, shared by chat.c (recognition), chat_render.c (frame) and chat_family.c (the
// templates themselves). Room-internal.
#ifndef TEXT_CHAT_IMPL_H
#define TEXT_CHAT_IMPL_H

#include "text/chat.h"

#define CHAT_MAX_STOPS 4

struct chat {
    enum chat_family family;
    const struct tokenizer *t;
    char *default_system; // what the template says when the conversation has no system message; NULL: nothing
    bool reasons;         // Qwen 3: earlier thinking is cleared, later thinking rendered
    bool think_switch;    // honours enable_thinking
    bool think_forced;    // the generation prompt opens <think>
    int32_t stops[CHAT_MAX_STOPS];
    size_t n_stops;
    int32_t close;
    // Markers by role; -1 where the family has none.
    int32_t bos, turn, turn_end,
        header_end; // <|im_start|>, <|im_end|>; <|start_header_id|>, <|eot_id|>, <|end_header_id|>
    int32_t system, user, assistant, observation;       // GLM; tiny: SYS, USER, ASST
    int32_t call, call_end, result, result_end, answer; // tiny
};

// One rendering under way.
struct render {
    const struct chat *c;
    const json_t *messages, *tools;
    struct chat_options options;
    struct tokens *out;
    struct buf run; // plain text that is tokenised as one piece when a marker comes or the mask changes
    uint8_t mask;
    int32_t held_end; // GLM: the header that the held turn has already sampled; -1: none
    size_t last_query;
    struct error *err;
    enum status status; // the first failure; later writes do nothing
};

void render_mask(struct render *r, bool mask);
void render_marker(struct render *r, int32_t id);
void render_plain(struct render *r, const char *s, size_t n);
void render_puts(struct render *r, const char *s);
// The template's own text, in which added markers are recognised.
void render_trusted(struct render *r, const char *s);
void render_flush(struct render *r);

enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL };
enum role message_role(const json_t *message);
const char *message_role_name(const json_t *message);
bool message_trains(const json_t *message);

// The text of a message: its parts joined, and where each part ends, because parts can differ in "train".
struct content {
    struct buf text;
    size_t from, to; // what is left of it after trimming
    size_t *ends;
    bool *trains;
    size_t n_parts;
};
void content_init(struct content *c, const json_t *message);
void content_done(struct content *c);
void content_trim(struct content *c); // white space at both ends, Python's str.strip
void content_trim_char(struct content *c, char ch, bool left, bool right);
void render_content(struct render *r, const struct content *c, bool train); // mask = train and the part's own

// json.dumps(j, ensure_ascii=False): what the templates' tojson writes.
void chat_put_json(struct buf *b, const json_t *j);
// The arguments of a call as the templates write them: an object, or the JSON text of one.
void chat_put_arguments(struct buf *b, const json_t *arguments);
// {name, arguments} of a call, whether wrapped as {id, type, function} or bare.
const json_t *chat_call_function(const json_t *call);

// chat_family.c
void family_prelude(struct render *r);                 // what comes before the first message
void family_message(struct render *r, size_t i);       // messages[i]
void family_resume(struct render *r, int32_t last_id); // what follows the held turn
void family_generation_prompt(struct render *r);
size_t family_last_query(const struct chat *c, const json_t *messages,
                         size_t n); // index; n - 1 when there is none

#endif
