// What the next step computes. Runs on the compute thread.
//
// One pass over the running sequences in order of admission gives each its rows: one to a sequence that decodes, up to
// prefill_chunk to one whose prompt is not through, within max_batch_tokens; then waiting sequences are admitted with what is
// left of the budget.
//
// Invariants
//   1. Every running sequence that decodes gets its row in every step: prompts share only the rest of the budget.
//   2. A page is taken only for rows of this step. When none is left the youngest running sequence is retracted: it has not been
//      scheduled yet, or is the one asking; so the oldest always gets on, and nothing in the batch loses its pages.
//   3. First come, first admitted, but for two reasons to let others pass: newer weights are asked for than are held; or a
//      running sequence is about to fill the very page that this one needs next (the members of a group share their prompt,
//      and it is computed once). Bounded: at most LOOK_AHEAD are passed over in a step.
#include <assert.h>
#include <string.h>

#include "base/mem.h"
#include "rollout/sequence.h"

#define LOOK_AHEAD 256

static bool decodes(const struct sequence *s)
{
    return s->n_computed + 1 == s->n_ids;
}

static int32_t pages_for(const struct engine *e, int32_t rows)
{
    return (rows + e->config.page_tokens - 1) / e->config.page_tokens;
}

static void reserve_page_list(struct sequence *s, int32_t n)
{
    if (n <= s->cap_pages)
        return;
    s->cap_pages = n > 2 * s->cap_pages ? n : 2 * s->cap_pages;
    s->pages = mem_grow(s->pages, (size_t)s->cap_pages, sizeof *s->pages);
}

// Pages for rows [0, n_computed + rows) of running[index]. false: it was itself retracted.
static bool make_room(struct engine *e, int32_t index, int32_t rows)
{
    struct sequence *s = e->running[index];
    int32_t need = pages_for(e, s->n_computed + rows);
    reserve_page_list(s, need);
    while (s->n_pages < need) {
        int32_t page = pages_take(e->pages);
        if (page >= 0) {
            s->pages[s->n_pages++] = page;
            continue;
        }
        int32_t youngest = e->n_running - 1;
        e->stats.preemptions++;
        sequence_retract(e, youngest, KV_PREEMPTION);
        if (youngest == index)
            return false;
    }
    return true;
}

// Notes which rows of the batch need logits: prompt tokens to be scored, and the last row when a token is to be sampled.
static void want_rows(struct engine *e, struct sequence *s, int32_t row0, int32_t rows)
{
    int32_t first = s->n_computed, end = first + rows;
    if (s->prompt_logprobs) {
        for (int32_t p = first; p < end && p + 1 < s->n_prompt; p++)
            if (p + 1 >= s->n_prompt_scored)
                e->to_score[e->n_to_score++] = (struct row){s, row0 + p - first, s->ids[p + 1]};
    }
    if (end == s->n_ids && s->sampling.max_new > 0)
        e->to_sample[e->n_to_sample++] = (struct row){s, row0 + rows - 1, -1};
}

static void add_rows(struct engine *e, struct sequence *s, int32_t rows)
{
    int32_t row0 = e->n_rows;
    memcpy(e->ids + row0, s->ids + s->n_computed, (size_t)rows * sizeof *e->ids);
    for (int32_t i = 0; i < rows; i++)
        e->pos[row0 + i] = s->n_computed + i;
    e->attn[e->n_seqs] =
        (struct attn_seq){.row0 = row0, .n_rows = rows, .pos0 = s->n_computed, .pages = s->pages};
    e->members[e->n_seqs++] = s;
    e->n_rows += rows;
    want_rows(e, s, row0, rows);
    if (rows > 1 || s->n_computed < s->n_prompt)
        e->stats.prefill_tokens += rows;
}

// The key of the page that a prefilling sequence fills next: whoever needs the same page waits for it.
static void note_next_page(struct engine *e, struct sequence *s)
{
    int32_t matched = pages_match(e->pages, e->version, s->ids, s->n_ids - 1, e->matched2, &s->next_page_key);
    if (matched < s->n_registered)
        s->next_page_key = 0; // its own chain is not a pure one: nobody else could read it
}

static bool being_filled(const struct engine *e, uint64_t key)
{
    for (int32_t i = 0; i < e->n_running && key; i++)
        if (e->running[i]->next_page_key == key)
            return true;
    return false;
}

// Looks for the sequence's prefix in the cache: the pages are in e->matched. At least its last row stays to be computed.
static int32_t look_up(struct engine *e, struct sequence *s, uint64_t *ret_next)
{
    *ret_next = 0;
    bool scoring = s->prompt_logprobs && s->n_prompt_scored < s->n_prompt; // needs every row
    if (e->config.no_prefix_cache || scoring)
        return 0;
    int32_t n = pages_match(e->pages, e->version, s->ids, s->n_ids - 1, e->matched, ret_next);
    if (!s->session)
        return n;
    int32_t own = sessions_match(e->sessions, s->session, e->pages, e->config.page_tokens, s->ids,
                                 s->n_ids - 1, e->matched2);
    if (own <= n)
        return n;
    *ret_next = 0;
    memcpy(e->matched, e->matched2, (size_t)own * sizeof *e->matched);
    return own;
}

static void note_hit_versions(struct engine *e, struct sequence *s, int32_t n_pages)
{
    int32_t pt = e->config.page_tokens;
    for (int32_t i = 0; i < n_pages; i++) {
        const int32_t *v = pages_versions(e->pages, s->pages[i]);
        for (int32_t j = 0; j < pt; j++) {
            if (s->n_runs > 0 && s->runs[s->n_runs - 1].version == v[j]) {
                s->runs[s->n_runs - 1].end++;
                continue;
            }
            if (s->n_runs == s->cap_runs) {
                s->cap_runs = s->cap_runs ? 2 * s->cap_runs : 2;
                s->runs = mem_grow(s->runs, (size_t)s->cap_runs, sizeof *s->runs);
            }
            s->runs[s->n_runs++] = (struct row_run){i * pt + j + 1, v[j]};
        }
    }
}

// WAITING → RUNNING with the first n_hit pages of e->matched.
static void admit(struct engine *e, struct sequence *s, int32_t n_hit)
{
    sequence_unqueue(e, s);
    s->state = SEQ_RUNNING;
    e->running[e->n_running++] = s;
    reserve_page_list(s, n_hit);
    for (int32_t i = 0; i < n_hit; i++) {
        pages_ref(e->pages, e->matched[i]);
        s->pages[i] = e->matched[i];
    }
    s->n_pages = s->n_registered = n_hit;
    note_hit_versions(e, s, n_hit);
    s->n_computed = n_hit * e->config.page_tokens;
    for (int32_t r = 0, from = 0; r < s->n_runs; from = s->runs[r++].end)
        sequence_add_kv(s, KV_PREFIX_HIT, from, s->runs[r].end, s->runs[r].version);
    sequence_add_kv(s, s->restarted ? (enum msg_kv_event)s->restarted : KV_PREFILL, s->n_computed, s->n_ids,
                    e->version);
    if (!s->restarted && s->n_ids == s->n_prompt)
        s->n_cached = s->n_computed;
    s->restarted = 0;
    e->stats.cached_tokens += s->n_computed;
}

// Held pages that a match would bring back from the cache count as taken.
static bool fits(const struct engine *e, const struct sequence *s, int32_t n_hit)
{
    int32_t revived = 0;
    for (int32_t i = 0; i < n_hit; i++)
        revived += !pages_held(e->pages, e->matched[i]);
    int32_t need = pages_for(e, s->n_ids) - n_hit;
    // Room for those already running to grow by a page soon, so that admitting does not lead straight to preempting.
    int32_t spare = e->n_running < pages_total(e->pages) / 16 ? e->n_running : pages_total(e->pages) / 16;
    return pages_available(e->pages) - revived >= need + spare;
}

static int32_t chunk_of(const struct engine *e, const struct sequence *s, int32_t budget)
{
    int32_t rows = s->n_ids - s->n_computed;
    if (rows > e->config.prefill_chunk)
        rows = e->config.prefill_chunk;
    return rows < budget ? rows : budget;
}

static void admit_waiting(struct engine *e)
{
    int32_t passed = 0;
    for (struct sequence *s = e->first, *next; s; s = next) {
        next = s->newer;
        int32_t budget = e->config.max_batch_tokens - e->n_rows;
        if (budget <= 0 || e->n_running >= e->config.max_running || passed > LOOK_AHEAD)
            return;
        if (s->min_version > e->version) {
            passed++;
            continue;
        }
        uint64_t next_page;
        int32_t n_hit = look_up(e, s, &next_page);
        if (being_filled(e, next_page)) {
            passed++;
            continue;
        }
        if (!fits(e, s, n_hit))
            return;
        admit(e, s, n_hit);
        s->next_page_key = s->prompt_logprobs ? 0 : next_page;
        int32_t rows = chunk_of(e, s, budget);
        if (!make_room(e, e->n_running - 1, rows))
            return;
        add_rows(e, s, rows);
    }
}

void schedule_step(struct engine *e)
{
    int64_t preempted = e->stats.preemptions;
    int32_t n_decode = 0;
    for (int32_t i = 0; i < e->n_running; i++)
        n_decode += decodes(e->running[i]);
    for (int32_t i = 0; i < e->n_running; i++) {
        struct sequence *s = e->running[i];
        bool decode = decodes(s);
        n_decode -= decode;
        int32_t rows = decode ? 1 : chunk_of(e, s, e->config.max_batch_tokens - e->n_rows - n_decode);
        if (rows <= 0)
            continue;
        if (!make_room(e, i, rows))
            break;
        add_rows(e, s, rows);
        if (decode)
            s->next_page_key = 0;
        else if (s->next_page_key)
            note_next_page(e, s);
    }
    if (e->stats.preemptions == preempted)
        admit_waiting(e);
}

bool schedule_ready(const struct engine *e)
{
    if (e->n_running > 0)
        return true;
    for (const struct sequence *s = e->first; s; s = s->newer)
        if (s->min_version <= e->version)
            return true;
    return false;
}
