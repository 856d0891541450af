/* See text_log.h. */
#include "coordinator/core/text_log.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

void text_log_start(text_log_t *log)
{
    *log = (text_log_t){.detok = {.skip_special = true}};
}

/* Where the first stop string begins in the text, looking only at matches that end in new bytes;
 * SIZE_MAX when there is none. */
static size_t find_stop(const buffer_t *text, size_t old_size, const text_stops_t *stops)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < stops->n; i++) {
        size_t size = strlen(stops->strings[i]);
        if (size == 0 || size > text->size)
            continue;
        size_t from = old_size >= size ? old_size - size + 1 : 0;
        const uint8_t *at = memmem(text->data + from, text->size - from, stops->strings[i], size);
        if (at && (size_t)(at - text->data) < best)
            best = (size_t)(at - text->data);
    }
    return best;
}

/* Bytes at the end of the text that are the beginning of a stop string, the longest such. */
static size_t held_for_stop(const buffer_t *text, const text_stops_t *stops)
{
    size_t held = 0;
    for (size_t i = 0; i < stops->n; i++) {
        size_t size = strlen(stops->strings[i]);
        size_t most = size - 1 < text->size ? size - 1 : text->size;
        for (size_t n = most; n > held; n--)
            if (memcmp(text->data + text->size - n, stops->strings[i], n) == 0) {
                held = n;
                break;
            }
    }
    return held;
}

static void settle(text_log_t *log, size_t old_size, const text_stops_t *stops)
{
    size_t stop = find_stop(&log->text, old_size, stops);
    if (stop != SIZE_MAX) {
        log->text.size = stop;
        log->stopped = true;
    }
}

status_t text_log_push(text_log_t *log, const tokenizer_t *tokenizer, const text_stops_t *stops,
                       uint32_t id, bool last)
{
    if (log->stopped || log->ended)
        return STATUS_OK;
    size_t old_size = log->text.size;
    TRY(detok_push(&log->detok, tokenizer, id, &log->text));
    MEM_GROW(log->ids, log->ids_capacity, log->n + 1);
    MEM_GROW(log->released, log->released_capacity, log->n + 1);
    log->ids[log->n] = id;
    settle(log, old_size, stops);
    if (last && !log->stopped) {
        old_size = log->text.size;
        detok_finish(&log->detok, &log->text);
        settle(log, old_size, stops);
        log->ended = true;
    }
    size_t held = log->stopped || last ? 0 : held_for_stop(&log->text, stops);
    log->released[log->n++] = (uint32_t)(log->text.size - held);
    return STATUS_OK;
}

size_t text_log_released(const text_log_t *log, size_t n)
{
    return n == 0 ? 0 : log->released[n - 1];
}

void text_log_release(text_log_t *log)
{
    free(log->ids);
    free(log->released);
    buffer_release(&log->text);
    *log = (text_log_t){0};
}
