/* What a value is asked for: x.name, x[index] and x[start:stop:step], as Jinja's sandbox
 * answers. No attribute exists here but methods of a fixed table, fields of `loop` and elements
 * of mappings. */
#include <string.h>

#include "common/model/jinja_eval.h"

static status_t fail_undefined(jinja_run_t *run, const value_t *value)
{
    return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
}

static bool loop_field(const loop_t *loop, const text_t *name, value_t *out)
{
    const list_t *items = loop->items;
    size_t i = loop->index0;
    const struct {
        const char *name;
        value_t value;
    } fields[] = {
        {"index", value_integer((int64_t)i + 1)},
        {"index0", value_integer((int64_t)i)},
        {"first", value_bool(i == 0)},
        {"last", value_bool(i + 1 >= items->n)},
        {"length", value_integer((int64_t)items->n)},
        {"revindex", value_integer((int64_t)items->n - (int64_t)i)},
        {"revindex0", value_integer((int64_t)items->n - (int64_t)i - 1)},
        {"depth", value_integer((int64_t)loop->depth0 + 1)},
        {"depth0", value_integer((int64_t)loop->depth0)},
        {"previtem", i > 0 ? items->items[i - 1] : value_undefined(text_of("loop.previtem", 0))},
        {"nextitem", i + 1 < items->n ? items->items[i + 1]
                                      : value_undefined(text_of("loop.nextitem", 0))},
    };
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++)
        if (text_is(name, fields[f].name)) {
            *out = fields[f].value;
            return true;
        }
    return false;
}

static status_t macro_field(jinja_run_t *run, const macro_t *macro, const text_t *name,
                            value_t *out, bool *found_out)
{
    const node_t *node = macro->node;
    *found_out = true;
    if (text_is(name, "name")) {
        *out = node->kind == NODE_CALL_BLOCK
                   ? value_none()
                   : value_text((text_t){node->text, node->text_size, NULL, MARK_TEMPLATE, false});
    } else if (text_is(name, "caller")) {
        *out = value_bool((node->integer & SPECIAL_CALLER) != 0);
    } else if (text_is(name, "catch_kwargs")) {
        *out = value_bool((node->integer & SPECIAL_KWARGS) != 0);
    } else if (text_is(name, "catch_varargs")) {
        *out = value_bool((node->integer & SPECIAL_VARARGS) != 0);
    } else if (text_is(name, "arguments")) {
        TRY(list_new(run, VALUE_TUPLE, node->n_items, out));
        for (size_t i = 0; i < node->n_items; i++) {
            const node_t *parameter = node->items[i];
            value_t word = value_text((text_t){parameter->text, parameter->text_size, NULL,
                                               MARK_TEMPLATE, false});
            TRY(list_append(run, out->list, &word));
        }
    } else {
        *found_out = false;
    }
    return STATUS_OK;
}

/* A groupby pair knows its parts by name. */
static bool pair_field(const value_t *value, const text_t *name, value_t *out)
{
    if (value->kind != VALUE_TUPLE || value->list->type == NULL || value->list->n != 2)
        return false;
    bool grouper = text_is(name, "grouper");
    if (!grouper && !text_is(name, "list"))
        return false;
    *out = value->list->items[grouper ? 0 : 1];
    return true;
}

status_t value_own_attribute(jinja_run_t *run, const value_t *value, const text_t *name,
                             value_t *out, bool *found_out)
{
    *found_out = false;
    if (name->n >= 2 && memcmp(name->data, "__", 2) == 0)
        return jinja_fail(run, "the attribute \"%.*s\" is not accessible",
                          (int)(name->n < 40 ? name->n : 40), name->data);
    if (value->kind == VALUE_UNDEFINED)
        return fail_undefined(run, value);
    method_fn fn = method_find(value, name);
    if (fn != NULL) {
        method_t *method;
        TRY(run_alloc(run, 1, sizeof *method, &method));
        *method = (method_t){*value, fn};
        *out = (value_t){.kind = VALUE_METHOD, .method = method};
        *found_out = true;
    } else if (value->kind == VALUE_LOOP) {
        *found_out = loop_field(value->loop, name, out);
    } else if (value->kind == VALUE_MACRO) {
        return macro_field(run, value->macro, name, out, found_out);
    } else if (value->kind == VALUE_NAMESPACE) {
        const value_t *found;
        TRY(dict_get(run, value->dict, name, &found));
        *found_out = found != NULL;
        if (found != NULL)
            *out = *found;
    } else {
        *found_out = pair_field(value, name, out);
    }
    return STATUS_OK;
}

status_t value_attribute(jinja_run_t *run, const value_t *value, const text_t *name, value_t *out)
{
    bool found;
    TRY(value_own_attribute(run, value, name, out, &found));
    if (found)
        return STATUS_OK;
    const value_t *element = NULL;
    if (value->kind == VALUE_DICT)
        TRY(dict_get(run, value->dict, name, &element));
    *out = element == NULL ? value_undefined(*name) : *element;
    return STATUS_OK;
}

/* The character at a place that counts from the end when it is negative; false beyond the ends. */
static bool character_at(const text_t *text, int64_t at, text_t *out)
{
    int64_t n = (int64_t)text_length(text);
    at += at < 0 ? n : 0;
    if (at < 0 || at >= n)
        return false;
    size_t start = text_offset(text, (size_t)at);
    text_t rest = text_slice(text, start, text->n - start);
    *out = text_slice(&rest, 0, text_offset(&rest, 1));
    return true;
}

status_t value_index(jinja_run_t *run, const value_t *value, const value_t *index, value_t *out)
{
    const value_t *element = NULL;
    text_t character;
    bool found = false;
    if (value->kind == VALUE_UNDEFINED)
        return fail_undefined(run, value);
    bool number = index->kind == VALUE_INTEGER || index->kind == VALUE_BOOL;
    int64_t at = index->kind == VALUE_BOOL ? index->truth : number ? index->integer : 0;
    if (value->kind == VALUE_DICT && index->kind == VALUE_TEXT) {
        TRY(dict_get(run, value->dict, &index->text, &element));
    } else if (number && value_is_sequence(value)) {
        int64_t n = (int64_t)value->list->n;
        at += at < 0 ? n : 0;
        element = at >= 0 && at < n ? &value->list->items[at] : NULL;
    } else if (number && value->kind == VALUE_TEXT) {
        TRY(run_charge(run, value->text.n / 64));
        if (character_at(&value->text, at, &character)) {
            *out = value_text(character);
            return STATUS_OK;
        }
    }
    if (element != NULL) {
        *out = *element;
        return STATUS_OK;
    }
    if (index->kind == VALUE_TEXT)
        TRY(value_own_attribute(run, value, &index->text, out, &found));
    if (!found)
        *out = value_undefined(index->kind == VALUE_TEXT ? index->text
                                                         : text_of("an element", MARK_DATA));
    return STATUS_OK;
}

/* start:stop:step over n elements, as Python clamps them. */
typedef struct {
    int64_t start, stop, step;
} range_t;

static status_t slice_part(jinja_run_t *run, const node_t *node, int64_t *inout)
{
    value_t value;
    if (node == NULL)
        return STATUS_OK;
    TRY(eval_expression(run, node, &value));
    if (value.kind == VALUE_NONE)
        return STATUS_OK;
    if (value.kind != VALUE_INTEGER && value.kind != VALUE_BOOL)
        return jinja_fail(run, "a slice needs integers, not %s", value_kind_name(&value));
    *inout = value.kind == VALUE_BOOL ? value.truth : value.integer;
    *inout += *inout == INT64_MIN; /* which stands for an absent part, and is as far away */
    return STATUS_OK;
}

static int64_t clamp(int64_t at, int64_t n, int64_t low, int64_t high)
{
    if (at < 0)
        at = at < -n ? low : at + n; /* far enough below is below the first */
    return at < low ? low : at > high ? high : at;
}

static status_t slice_range(jinja_run_t *run, const node_t *node, int64_t n, range_t *out)
{
    out->step = 1;
    TRY(slice_part(run, node->d, &out->step));
    if (out->step == 0 || out->step == INT64_MIN)
        return jinja_fail(run, "a slice step of %lld is not possible", (long long)out->step);
    bool up = out->step > 0;
    int64_t low = up ? 0 : -1, high = up ? n : n - 1;
    int64_t start = INT64_MIN, stop = INT64_MIN;
    TRY(slice_part(run, node->b, &start));
    TRY(slice_part(run, node->c, &stop));
    out->start = start == INT64_MIN ? (up ? low : high) : clamp(start, n, low, high);
    out->stop = stop == INT64_MIN ? (up ? high : low) : clamp(stop, n, low, high);
    return STATUS_OK;
}

/* A forward slice without steps is a part of the text itself. */
static text_t slice_text(const text_t *text, const range_t *range)
{
    size_t start = text_offset(text, (size_t)range->start);
    text_t rest = text_slice(text, start, text->n - start);
    size_t n = range->stop > range->start ? (size_t)(range->stop - range->start) : 0;
    return text_slice(&rest, 0, text_offset(&rest, n));
}

/* a + b * c without a trap: a range can stand at the ends of 64 bits. */
static int64_t step_from(int64_t a, int64_t b, int64_t c)
{
    return (int64_t)((uint64_t)a + (uint64_t)b * (uint64_t)c);
}

/* A range sliced is a range of its own numbers. */
static void slice_numbers(const list_t *from, const range_t *range, list_t *picked)
{
    picked->start = step_from(from->start, range->start, from->step);
    picked->stop = step_from(from->start, range->stop, from->step);
    picked->step = step_from(0, from->step, range->step);
}

status_t eval_slice(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t value, picked;
    list_t *list;
    range_t range;
    TRY(eval_expression(run, node->a, &value));
    run->line = node->line;
    if (value.kind == VALUE_UNDEFINED)
        return fail_undefined(run, &value);
    if (value.kind != VALUE_TEXT && !value_is_sequence(&value))
        return jinja_fail(run, "%s cannot be sliced", value_kind_name(&value));
    bool text = value.kind == VALUE_TEXT;
    TRY(run_charge(run, text ? value.text.n / 64 : 0));
    TRY(slice_range(run, node, (int64_t)(text ? text_length(&value.text) : value.list->n),
                    &range));
    const range_t numbers = range;
    if (text && range.step == 1) {
        *out = value_text(slice_text(&value.text, &range));
        return STATUS_OK;
    }
    TRY(value_elements(run, &value, &list));
    TRY(list_new(run, text ? VALUE_LIST : value.kind, 0, &picked));
    if (!text && range.step == 1 && range.start < range.stop) {
        /* Items never change once a list is made, so a run of them can be shared; appending to it
         * would move it first. Templates look at messages[loop.index:] in every turn. */
        picked.list->items = list->items + range.start;
        picked.list->n = picked.list->capacity = (size_t)(range.stop - range.start);
        range.start = range.stop;
    }
    for (int64_t at = range.start; range.step > 0 ? at < range.stop : at > range.stop;) {
        TRY(run_charge(run, 1));
        TRY(list_append(run, picked.list, &list->items[at]));
        if (__builtin_add_overflow(at, range.step, &at))
            break;
    }
    if (value.kind == VALUE_RANGE)
        slice_numbers(list, &numbers, picked.list);
    *out = picked;
    if (!text)
        return STATUS_OK;
    text_t *parts, joined;
    TRY(run_alloc(run, picked.list->n, sizeof *parts, &parts));
    for (size_t i = 0; i < picked.list->n; i++)
        parts[i] = picked.list->items[i].text;
    TRY(text_join(run, parts, picked.list->n, &joined));
    *out = value_text(joined);
    return STATUS_OK;
}
