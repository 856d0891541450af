/* The row kernels for levels with 16-lane vectors; included once by each level's file after its vec
 * header. The order of operations is ref_rows.c's, lane for lane. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/internal.h"
#include "kernels/cpu/numbers.h"

static void rmsnorm_vec(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
    vf_t squares = vf_set(0);
    uint32_t whole = n / 16 * 16;
    for (uint32_t i = 0; i < whole; i += 16) {
        vf_t v = vf_load(x + i);
        squares = vf_fma(v, v, squares);
    }
    if (whole < n) {
        /* A missing lane adds 0 * 0 to a sum that is never -0. */
        vf_t v = vf_load_n(x + whole, n - whole);
        squares = vf_fma(v, v, squares);
    }
    float mean = vf_tree_sum(squares) / (float)n;
    vf_t r = vf_set(1.0f / sqrtf(mean + eps));
    if (weight == NULL) {
        for (uint32_t i = 0; i < n; i += 16)
            vf_store_n(out + i, vf_mul(vf_load_n(x + i, n - i), r), n - i);
        return;
    }
    for (uint32_t i = 0; i < whole; i += 16)
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), r), vf_load(weight + i)));
    if (whole < n) {
        uint32_t rest = n - whole;
        vf_t v = vf_mul(vf_mul(vf_load_n(x + whole, rest), r), vf_load_n(weight + whole, rest));
        vf_store_n(out + whole, v, rest);
    }
}

static uint32_t magnitude_vec(const float *x, uint32_t n)
{
    vi_t most = vi_zero();
    vi_t mask = vi_set(0x7fffffff);
    uint32_t whole = n / 16 * 16;
    for (uint32_t i = 0; i < whole; i += 16)
        most = vi_max(most, vi_and(vf_bits(vf_load(x + i)), mask));
    if (whole < n)
        most = vi_max(most, vi_and(vf_bits(vf_load_n(x + whole, n - whole)), mask));
    return (uint32_t)vi_largest(most);
}

/* A group's values; what a short one lacks is 0. */
typedef struct {
    vf_t low, high;
} group_t;

static inline group_t load_group(const float *x, uint32_t n)
{
    if (n == SEGMENT_K)
        return (group_t){vf_load(x), vf_load(x + 16)};
    return (group_t){vf_load_n(x, n), vf_load_n(x + 16, n > 16 ? n - 16 : 0)};
}

/* Returns the group's magnitude. */
static inline uint32_t quantize_group(group_t x, kinput_seg_t *out)
{
    vi_t magnitude = vi_set(0x7fffffff), q_low = vi_zero(), q_high = q_low;
    uint32_t most = (uint32_t)vi_largest(
        vi_max(vi_and(vf_bits(x.low), magnitude), vi_and(vf_bits(x.high), magnitude)));
    group_scale_t scale = group_scale(most);
    if (scale.id != 0.0f) {
        vf_t id = vf_set(scale.id);
        q_low = vf_round(vf_mul(x.low, id));
        q_high = vf_round(vf_mul(x.high, id));
    }
    vi_store_bytes(out->q, q_low);
    vi_store_bytes(out->q + 16, q_high);
    int32_t sum = vi_sum(vi_add(q_low, q_high));
    out->da = scale.da;
    out->offset = scale.offset;
    out->sum = (float)sum * scale.da;
    out->start_q4 = SUM_START - 8 * sum;
    out->start_q8 = SUM_START - 128 * sum;
    memset(out->zero, 0, sizeof out->zero);
    return most;
}

/* The groups of the largest magnitudes so far, descending, the earlier of equals first. */
typedef struct {
    uint32_t most[NUMERICS_APART], segment[NUMERICS_APART], n;
} largest_t;

static inline void keep_largest(largest_t *kept, uint32_t most, uint32_t segment)
{
    if (most < TINY_BITS || (kept->n == NUMERICS_APART && most <= kept->most[kept->n - 1]))
        return;
    uint32_t at = kept->n < NUMERICS_APART ? kept->n++ : kept->n - 1;
    for (; at > 0 && kept->most[at - 1] < most; at--) {
        kept->most[at] = kept->most[at - 1];
        kept->segment[at] = kept->segment[at - 1];
    }
    kept->most[at] = most;
    kept->segment[at] = segment;
}

/* Takes the largest value, the first of equals, out of a group. */
static inline void take_apart(const kseg_t *seg, const float *x, uint32_t most,
                              kinput_seg_t *group, kapart_t *apart)
{
    group_t values = load_group(x + seg->k, seg->len);
    vi_t magnitude = vi_set(0x7fffffff), wanted = vi_set((int32_t)most);
    uint32_t same = vi_equal(vi_and(vf_bits(values.low), magnitude), wanted) |
                    vi_equal(vi_and(vf_bits(values.high), magnitude), wanted) << 16;
    uint32_t at = (uint32_t)__builtin_ctz(same);
    apart->value[apart->n] = x[seg->k + at];
    apart->k[apart->n++] = seg->k + at;
    values.low = vf_without(values.low, at);
    values.high = vf_without(values.high, at - 16);
    (void)quantize_group(values, group);
}

static void take_all_apart(const kinput_t *layout, const float *x, largest_t *kept,
                           kinput_seg_t *out)
{
    kapart_t *apart = (kapart_t *)(void *)(out + layout->n_segs);
    memset(apart, 0, sizeof *apart);
    while (apart->n < kept->n) {
        uint32_t next = apart->n;
        for (uint32_t i = next + 1; i < kept->n; i++)
            next = kept->segment[i] < kept->segment[next] ? i : next;
        uint32_t segment = kept->segment[next], most = kept->most[next];
        kept->segment[next] = kept->segment[apart->n];
        kept->most[next] = kept->most[apart->n];
        take_apart(&layout->segs[segment], x, most, &out[segment], apart);
    }
}

static bool quantize_int8_vec(const kinput_t *layout, const float *x, uint8_t *row_out)
{
    kinput_seg_t *out = (kinput_seg_t *)(void *)row_out;
    largest_t kept = {.n = 0};
    bool bad = false;
    for (uint32_t s = 0; s < layout->n_segs; s++) {
        const kseg_t *seg = &layout->segs[s];
        uint32_t most = quantize_group(load_group(x + seg->k, seg->len), &out[s]);
        bad |= most >= HUGE_BITS;
        if (layout->has_apart)
            keep_largest(&kept, most, s);
    }
    if (bad)
        kept.n = 0;
    if (layout->has_apart)
        take_all_apart(layout, x, &kept, out);
    return bad;
}

/* Nearest BF16, half to even, in the low halves of the lanes. */
static inline vi_t bf16_lanes(vf_t v)
{
    vi_t bits = vf_bits(v);
    vi_t odd = vi_and(vi_right_16(bits), vi_set(1));
    return vi_right_16(vi_add(vi_add(bits, vi_set(0x7fff)), odd));
}

static void quantize_bf16_leaf(const kleaf_t *leaf, const float *x, uint16_t *to)
{
    for (uint32_t i = 0; i < leaf->len_padded; i += 16) {
        uint32_t n = leaf->len - i < 16 ? leaf->len - i : 16;
        uint32_t n_padded = leaf->len_padded - i < 16 ? leaf->len_padded - i : 16;
        uint16_t halves[16];
        if (n == 16) {
            vi_store_halves(to + i, bf16_lanes(vf_load(x + i)));
            continue;
        }
        vi_store_halves(halves, bf16_lanes(vf_load_n(x + i, n)));
        memcpy(to + i, halves, n_padded * sizeof halves[0]);
    }
}

static void quantize_f32_leaf(const kleaf_t *leaf, bool pair_order, const float *x, float *to)
{
    for (uint32_t i = 0; i < leaf->len_padded; i++)
        to[pair_order ? i ^ 1 : i] = i < leaf->len ? x[i] : 0.0f;
}

static bool quantize_vec(const kinput_t *layout, const float *x, uint8_t *row_out)
{
    if (layout->kind == KACTIVATION_INT8 || layout->kind == KACTIVATION_INT8_16)
        return quantize_int8_vec(layout, x, row_out);
    bool bad = magnitude_vec(x, layout->k) >= ROW_ERROR_BITS;
    bool bf16 = layout->kind == KACTIVATION_BF16;
    for (uint32_t i = 0; bad && i < layout->k_padded; i++) {
        uint32_t nan = NAN_BITS;
        uint16_t half = NAN_BITS >> 16;
        if (bf16)
            memcpy(row_out + (size_t)i * 2, &half, 2);
        else
            memcpy(row_out + (size_t)i * 4, &nan, 4);
    }
    for (uint32_t l = 0; !bad && l < layout->n_leaves; l++) {
        const kleaf_t *leaf = &layout->leaves[l];
        if (bf16)
            quantize_bf16_leaf(leaf, x + leaf->k, (uint16_t *)(void *)row_out + leaf->k_padded);
        else
            quantize_f32_leaf(leaf, layout->pair_order, x + leaf->k,
                              (float *)(void *)row_out + leaf->k_padded);
    }
    return bad;
}

/* exp2_vec of what is at most EXP2_MAX, or NaN. */
static inline vf_t exp2_small(vf_t x)
{
    x = vf_max(vf_set(EXP2_MIN), x);
    vf_t shifted = vf_add(x, vf_set(EXP2_ROUND));
    vf_t f = vf_sub(x, vf_sub(shifted, vf_set(EXP2_ROUND)));
    vf_t p = vf_fma(vf_set(EXP2_C6), f, vf_set(EXP2_C5));
    p = vf_fma(p, f, vf_set(EXP2_C4));
    p = vf_fma(p, f, vf_set(EXP2_C3));
    p = vf_fma(p, f, vf_set(EXP2_C2));
    p = vf_fma(p, f, vf_set(EXP2_C1));
    p = vf_fma(p, f, vf_set(1.0f));
    return vi_floats(vi_add(vf_bits(p), vi_left_23(vf_bits(shifted))));
}

static inline vf_t exp2_vec(vf_t x)
{
    return exp2_small(vf_min(vf_set(EXP2_MAX), x));
}

static inline vf_t silu_vec(vf_t gate, vf_t up)
{
    vf_t e = exp2_vec(vf_mul(gate, vf_set(-LOG2_E)));
    return vf_mul(vf_div(gate, vf_add(vf_set(1.0f), e)), up);
}

static inline vf_t tanh_vec(vf_t y)
{
    vf_t size = vi_floats(vi_and(vf_bits(y), vi_set(0x7fffffff)));
    vf_t z = vf_mul(y, y);
    vf_t p = vf_fma(vf_set(TANH_C5), z, vf_set(TANH_C4));
    p = vf_fma(p, z, vf_set(TANH_C3));
    p = vf_fma(p, z, vf_set(TANH_C2));
    p = vf_fma(p, z, vf_set(TANH_C1));
    p = vf_fma(p, z, vf_set(TANH_C0));
    vf_t small = vf_fma(vf_mul(p, z), y, y);
    vf_t e = exp2_vec(vf_mul(size, vf_set(2.0f * LOG2_E)));
    vf_t large = vf_sub(vf_set(1.0f), vf_div(vf_set(2.0f), vf_add(vf_set(1.0f), e)));
    /* The magnitude is never negative, so adding the sign bit sets it. */
    vi_t sign = vi_and(vf_bits(y), vi_set(INT32_MIN));
    large = vi_floats(vi_add(vf_bits(large), sign));
    return vf_pick_less(size, vf_set(TANH_SMALL), small, large);
}

static inline vf_t softcap_lanes(vf_t x, vf_t cap)
{
    return vf_mul(cap, tanh_vec(vf_div(x, cap)));
}

static void softcap_vec(float *x, uint32_t n, float cap)
{
    for (uint32_t i = 0; i < n; i += 16)
        vf_store_n(x + i, softcap_lanes(vf_load_n(x + i, n - i), vf_set(cap)), n - i);
}

static inline vf_t gelu_vec(vf_t x)
{
    vf_t cube = vf_mul(vf_mul(x, x), vf_set(GELU_CUBE));
    vf_t e = exp2_vec(vf_mul(vf_fma(cube, x, x), vf_set(GELU_FACTOR)));
    return vf_div(x, vf_add(vf_set(1.0f), e));
}

static inline vf_t activate_lanes(const kactivate_t *what, vf_t gate, vf_t up)
{
    vf_t limit = vf_set(what->limit);
    if (what->kind == KACTIVATE_GELU_TANH)
        return vf_mul(gelu_vec(gate), up);
    if (what->kind == KACTIVATE_SILU)
        return silu_vec(gate, up);
    gate = vf_min(limit, gate);
    up = vf_max(vf_set(-what->limit), vf_min(limit, up));
    if (what->kind == KACTIVATE_SILU_LIMIT)
        return silu_vec(gate, up);
    vf_t e = exp2_vec(vf_mul(vf_mul(gate, vf_set(what->alpha)), vf_set(-LOG2_E)));
    return vf_mul(vf_add(up, vf_set(1.0f)), vf_div(gate, vf_add(vf_set(1.0f), e)));
}

static void activate_vec(const kactivate_t *what, const float *gate, const float *up, uint32_t n,
                         float *out)
{
    for (uint32_t i = 0; i < n; i += 16) {
        vf_t y = activate_lanes(what, vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i));
        vf_store_n(out + i, y, n - i);
    }
}

static void silu_mul_vec(const float *gate, const float *up, uint32_t n, float *out)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        vf_store(out + i, silu_vec(vf_load(gate + i), vf_load(up + i)));
    if (i < n)
        vf_store_n(out + i, silu_vec(vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i)), n - i);
}

/* What is left of the last vector is turned one by one, in the same order. */
static void turn_adjacent_vec(const float *turns, uint32_t half, float *head)
{
    const float *sines = turns + half;
    uint32_t i = 0;
    for (; i + 8 <= half; i += 8) {
        vf_t x = vf_load(head + 2 * i);
        vf_t own = vf_mul(x, vf_twice(turns + i));
        vf_t other = vf_mul(vf_swap_pairs(x), vf_twice(sines + i));
        vf_store(head + 2 * i, vf_sub_add(own, other));
    }
    for (; i < half; i++) {
        float a = head[2 * i], b = head[2 * i + 1];
        head[2 * i] = a * turns[i] - b * sines[i];
        head[2 * i + 1] = a * sines[i] + b * turns[i];
    }
}

static void turn_vec(krope_pairs_t pairs, const float *turns, uint32_t half, float *head)
{
    if (pairs == KROPE_ADJACENT) {
        turn_adjacent_vec(turns, half, head);
        return;
    }
    for (uint32_t i = 0; i < half; i += 16) {
        uint32_t n = half - i < 16 ? half - i : 16;
        vf_t cosine = vf_load_n(turns + i, n), sine = vf_load_n(turns + half + i, n);
        vf_t a = vf_load_n(head + i, n), b = vf_load_n(head + half + i, n);
        vf_store_n(head + i, vf_sub(vf_mul(a, cosine), vf_mul(b, sine)), n);
        vf_store_n(head + half + i, vf_add(vf_mul(a, sine), vf_mul(b, cosine)), n);
    }
}

static void tree_add_vec(const tree_program_t *program, const float *const *inputs,
                         const float *bias, const float *residual, float *out, uint32_t first,
                         uint32_t end)
{
    for (uint32_t i = first; i < end; i += 16) {
        uint32_t n = end - i < 16 ? end - i : 16;
        vf_t stack[TREE_DEPTH_MAX];
        uint32_t depth = 0;
        for (uint32_t s = 0; s < program->n_steps; s++) {
            if (program->steps[s] == TREE_ADD) {
                depth--;
                stack[depth - 1] = vf_add(stack[depth - 1], stack[depth]);
            } else {
                stack[depth++] = vf_load_n(inputs[program->steps[s]] + i, n);
            }
        }
        vf_t sum = stack[0];
        if (bias != NULL)
            sum = vf_add(sum, vf_load_n(bias + i, n));
        if (residual != NULL)
            sum = vf_add(vf_load_n(residual + i, n), sum);
        vf_store_n(out + i, sum, n);
    }
}
