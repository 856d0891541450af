/* Rope: base, size and scaling, from either format. Scalings that change frequencies one by one
 * (llama3, yarn) become divisors, computed here in double by the formulas of their papers as
 * transformers carries them out; the kernels know nothing of their names. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/arch.h"

/* What the files say about scaling, whatever they call it. */
typedef struct {
    char type[32];
    float factor, original, beta_fast, beta_slow, low_freq, high_freq;
    float attention_factor, mscale, mscale_all_dim; /* 0: not given */
    float part;      /* of a head that turns */
    float magnitude; /* a further one that cosines and sines are multiplied by */
    bool truncate;
    bool own; /* said of these layers alone */
} scaling_t;

static status_t read_number(const json_t *object, const char *where, const char *key, float min,
                            float max, float *out)
{
    double value = (double)*out;
    TRY(json_may_number(object, where, key, &value));
    if (*out == (float)value)
        return STATUS_OK;
    if (!(value >= (double)min && value <= (double)max))
        return fail(STATUS_INVALID, "%s: \"%s\" is %g; %g to %g would be right", where, key, value,
                    (double)min, (double)max);
    *out = (float)value;
    return STATUS_OK;
}

/* A member that nothing here reads could change the frequencies. "attn_factor" and "finetuned" are
 * in published models, and transformers, whose arithmetic this is, reads neither. */
static status_t refuse_unknown(const json_t *object, const char *where, const char *type,
                               const char *base_key)
{
    static const char *const kinds[] = {"none", "default", "linear", "llama3", "yarn"};
    static const char *const keys[] = {
        "type", "rope_type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
        "low_freq_factor", "high_freq_factor", "attention_factor", "attn_factor", "mscale",
        "mscale_all_dim", "truncate", "finetuned", "rope_theta", "partial_rotary_factor",
    };
    const char *key;
    json_t *value;
    bool kind_known = false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        kind_known = kind_known || strcmp(type, kinds[i]) == 0;
    if (!kind_known)
        return STATUS_OK; /* the kind itself is refused where it is applied */
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        bool known = strcmp(key, base_key) == 0;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            known = known || strcmp(key, keys[i]) == 0;
        if (!known && !json_is_null(value))
            return fail(STATUS_UNSUPPORTED, "%s: \"%.64s\" is no member that Shoal reads; leaving "
                        "it out could change the text", where, key);
    }
    return STATUS_OK;
}

/* "rope_scaling", or "rope_parameters" where newer files have it: one for all layers, or one for
 * each type of layer. */
static status_t find_scaling(const arch_reader_t *r, const char *layer_type, scaling_t *out,
                             const json_t **object, bool *parameters_out)
{
    const json_t *parameters = NULL, *own = NULL;
    TRY(json_may_object(r->config, r->where, "rope_scaling", object));
    TRY(json_may_object(r->config, r->where, "rope_parameters", &parameters));
    if (layer_type != NULL && parameters != NULL)
        TRY(json_may_object(parameters, r->where, layer_type, &own));
    *parameters_out = own != NULL || *object == NULL;
    out->own = own != NULL;
    if (own != NULL)
        *object = own;
    else if (*object == NULL)
        *object = parameters;
    return STATUS_OK;
}

static status_t read_directory(const arch_reader_t *r, const char *base_key, const char *layer_type,
                               scaling_t *out, float *base)
{
    const json_t *object = NULL;
    const char *type = NULL;
    char where[256];
    bool parameters;
    TRY(arch_f32_or(r, NULL, "partial_rotary_factor", 1e-3f, 1, &out->part));
    TRY(find_scaling(r, layer_type, out, &object, &parameters));
    if (out->own)
        base_key = "rope_theta";
    TRY(read_number(r->config, r->where, base_key, 1, 1e12f, base));
    if (object == NULL)
        return STATUS_OK;
    snprintf(where, sizeof where, "%s: %s", r->where,
             parameters ? "rope_parameters" : "rope_scaling");
    TRY(json_may_text(object, where, "type", &type, NULL));
    TRY(json_may_text(object, where, "rope_type", &type, NULL));
    if (type == NULL && parameters && json_object_get(object, "factor") == NULL)
        type = "default";
    if (type == NULL)
        return fail(STATUS_INVALID, "%s: neither \"rope_type\" nor \"type\" is given", where);
    snprintf(out->type, sizeof out->type, "%s", type);
    TRY(refuse_unknown(object, where, type, base_key));
    TRY(read_number(object, where, base_key, 1, 1e12f, base));
    TRY(read_number(object, where, "partial_rotary_factor", 1e-3f, 1, &out->part));
    TRY(read_number(object, where, "factor", 1e-3f, 1e6f, &out->factor));
    TRY(read_number(object, where, "original_max_position_embeddings", 1, 1e9f, &out->original));
    TRY(read_number(object, where, "beta_fast", 1e-3f, 1e6f, &out->beta_fast));
    TRY(read_number(object, where, "beta_slow", 1e-3f, 1e6f, &out->beta_slow));
    TRY(read_number(object, where, "low_freq_factor", 1e-3f, 1e6f, &out->low_freq));
    TRY(read_number(object, where, "high_freq_factor", 1e-3f, 1e6f, &out->high_freq));
    TRY(read_number(object, where, "attention_factor", 1e-3f, 1e3f, &out->attention_factor));
    TRY(read_number(object, where, "mscale", 0, 1e3f, &out->mscale));
    TRY(read_number(object, where, "mscale_all_dim", 0, 1e3f, &out->mscale_all_dim));
    return json_may_bool(object, where, "truncate", &out->truncate);
}

/* What llama.cpp multiplies cosines and sines by beside yarn's own magnitude, with and without any
 * scaling; 0 stands for a factor that is not given. Its further keys of yarn change other parts of
 * the formula. */
static status_t read_gguf_magnitude(const arch_reader_t *r, float *out)
{
    static const char *const others[] = {"rope.scaling.yarn_attn_factor",
                                         "rope.scaling.yarn_ext_factor"};
    TRY(arch_f32_or(r, "rope.scaling.attn_factor", NULL, 0, 1e3f, out));
    *out = *out != 0 ? *out : 1;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        float value = 1;
        TRY(arch_f32_or(r, others[i], NULL, -1e3f, 1e3f, &value));
        if (value != 1 && value != -1) /* which says that it is not given */
            return fail(STATUS_UNSUPPORTED, "%s: key %s.%s is %g; only 1 is supported", r->where,
                        r->prefix, others[i], (double)value);
    }
    return STATUS_OK;
}

static status_t read_gguf(const arch_reader_t *r, scaling_t *out, float *base)
{
    float multiplier = 0;
    gguf_text_t type = {"none", 4};
    char key[96];
    TRY(arch_f32_or(r, "rope.freq_base", NULL, 1, 1e12f, base));
    TRY(read_gguf_magnitude(r, &out->magnitude));
    snprintf(key, sizeof key, "%s.rope.scaling.type", r->prefix);
    if (gguf_find(r->gguf, key) != NULL)
        TRY(gguf_read_text(r->gguf, key, &type));
    snprintf(out->type, sizeof out->type, "%.*s", (int)(type.size < 31 ? type.size : 31),
             type.data);
    if (strcmp(out->type, "none") == 0) {
        TRY(arch_f32_or(r, "rope.scale_linear", NULL, 1e-3f, 1e6f, &out->factor));
        if (out->factor != 0)
            snprintf(out->type, sizeof out->type, "linear");
        return STATUS_OK;
    }
    TRY(arch_f32(r, "rope.scaling.factor", NULL, 1e-3f, 1e6f, &out->factor));
    uint32_t original = 0;
    TRY(arch_u32_or(r, "rope.scaling.original_context_length", NULL, 1, MODEL_CONTEXT_MAX,
                    &original));
    out->original = original != 0 ? (float)original : out->original;
    TRY(arch_f32_or(r, "rope.scaling.yarn_beta_fast", NULL, 1e-3f, 1e6f, &out->beta_fast));
    TRY(arch_f32_or(r, "rope.scaling.yarn_beta_slow", NULL, 1e-3f, 1e6f, &out->beta_slow));
    /* 0.1 * mscale_all_dim. The published models have mscale equal to it. */
    TRY(arch_f32_or(r, "rope.scaling.yarn_log_multiplier", NULL, 0, 1e3f, &multiplier));
    out->mscale = out->mscale_all_dim = 10 * multiplier;
    return STATUS_OK;
}

static status_t read_scaling(const arch_reader_t *r, const char *base_key, const char *layer_type,
                             scaling_t *out, float *base)
{
    base_key = base_key != NULL ? base_key : "rope_theta";
    *out = (scaling_t){.type = "none", .beta_fast = 32, .beta_slow = 1, .low_freq = 1,
                       .high_freq = 4, .truncate = true, .part = 1, .magnitude = 1,
                       .original = (float)r->out->context_train};
    return r->gguf != NULL ? read_gguf(r, out, base)
                           : read_directory(r, base_key, layer_type, out, base);
}

/* --- divisors of the frequencies --- */

/* The divisors are part of every logit's definition, and libraries differ in the last bits of these
 * two; IEEE operations do not. x > 0. */
static double log_of(double x)
{
    static const double LN2 = 0x1.62e42fefa39efp-1;
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    double t = (m - 1) / (m + 1), square = t * t, sum = 0;
    for (int k = 25; k >= 1; k -= 2)
        sum = sum * square + 1.0 / k;
    return exponent * LN2 + 2 * t * sum;
}

/* base^x by its series around the nearest power of two. */
static double power_of(double base, double x)
{
    static const double LN2 = 0x1.62e42fefa39efp-1;
    double y = x * log_of(base), n = floor(y / LN2 + 0.5), r = y - n * LN2, sum = 1;
    for (int k = 18; k >= 1; k--)
        sum = 1 + sum * r / k;
    return ldexp(sum, (int)n);
}

static double frequency(const model_rope_t *rope, uint32_t pair)
{
    return power_of((double)rope->base, -2.0 * pair / rope->dim);
}

/* Long waves are slowed by the factor, short ones kept, between them a mixture. */
static void llama3(const scaling_t *s, const model_rope_t *rope, float *factors)
{
    double low = (double)s->low_freq, high = (double)s->high_freq, factor = (double)s->factor;
    for (uint32_t i = 0; i < rope->dim / 2; i++) {
        double waves = (double)s->original * frequency(rope, i) / (2 * M_PI);
        if (waves > high) {
            factors[i] = 1;
        } else if (waves < low) {
            factors[i] = s->factor;
        } else {
            double smooth = (waves - low) / (high - low);
            factors[i] = (float)(1 / ((1 - smooth) / factor + smooth));
        }
    }
}

/* The pair that turns `rotations` times over the original context. */
static double correction(const scaling_t *s, const model_rope_t *rope, double rotations)
{
    return rope->dim * log_of((double)s->original / (rotations * 2 * M_PI)) /
           (2 * log_of((double)rope->base));
}

static void yarn(const scaling_t *s, const model_rope_t *rope, bool truncate, float *factors)
{
    double low = correction(s, rope, (double)s->beta_fast);
    double high = correction(s, rope, (double)s->beta_slow), factor = (double)s->factor;
    low = fmax(truncate ? floor(low) : low, 0);
    high = fmin(truncate ? ceil(high) : high, rope->dim - 1.0);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < rope->dim / 2; i++) {
        double slowed = fmin(fmax((i - low) / (high - low), 0), 1);
        factors[i] = (float)(1 / (slowed / factor + (1 - slowed)));
    }
}

static double mscale_of(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log_of(factor) + 1;
}

static float yarn_magnitude(const scaling_t *s)
{
    double factor = (double)s->factor;
    if (s->attention_factor != 0)
        return s->attention_factor;
    if (s->mscale != 0 && s->mscale_all_dim != 0)
        return (float)(mscale_of(factor, (double)s->mscale) /
                       mscale_of(factor, (double)s->mscale_all_dim));
    return (float)mscale_of(factor, 1);
}

static status_t apply(arch_reader_t *r, const scaling_t *s, const arch_rope_t *what)
{
    model_rope_t *rope = &r->out->ropes[what->index];
    bool is_yarn = strcmp(s->type, "yarn") == 0, is_llama3 = strcmp(s->type, "llama3") == 0;
    if (strcmp(s->type, "none") == 0 || strcmp(s->type, "default") == 0)
        return STATUS_OK;
    if (!is_yarn && !is_llama3 && strcmp(s->type, "linear") != 0)
        return fail(STATUS_UNSUPPORTED, "%s: rope scaling \"%s\"; none, linear, llama3 and yarn "
                    "are supported", r->where, s->type);
    if (s->factor == 0)
        return fail(STATUS_INVALID, "%s: rope scaling \"%s\" without a factor", r->where, s->type);
    if (is_llama3 && s->low_freq >= s->high_freq)
        return fail(STATUS_INVALID, "%s: rope scaling: low_freq_factor %g is not below "
                    "high_freq_factor %g", r->where, (double)s->low_freq, (double)s->high_freq);
    if (!is_yarn && !is_llama3) {
        rope->scale = 1.0f / s->factor;
        return STATUS_OK;
    }
    float *factors = MEM_NEW_ARRAY(float, rope->dim / 2);
    r->factors[what->index] = factors;
    rope->factors = true;
    if (is_llama3) {
        llama3(s, rope, factors);
        return STATUS_OK;
    }
    yarn(s, rope, s->truncate && !what->untruncated, factors);
    if (!what->no_magnitude || s->attention_factor != 0)
        rope->magnitude *= yarn_magnitude(s);
    return STATUS_OK;
}

status_t arch_read_rope(arch_reader_t *r, const arch_rope_t *what)
{
    model_rope_t *rope = &r->out->ropes[what->index];
    scaling_t scaling;
    *rope = (model_rope_t){.dim = what->dim, .pairs = what->pairs, .scale = 1, .magnitude = 1,
                           .base = what->base_default != 0 ? what->base_default : 10000};
    TRY(read_scaling(r, what->base_key, what->layer_type, &scaling, &rope->base));
    if (!what->dim_given)
        rope->dim = (uint32_t)((float)rope->dim * scaling.part);
    TRY(arch_u32_or(r, "rope.dimension_count", NULL, 2, what->dim_max, &rope->dim));
    if (rope->dim % 2 != 0 || rope->dim == 0)
        return fail(STATUS_INVALID, "%s: %s%s is %u; an even number would be right", r->where,
                    r->gguf != NULL ? r->prefix : "the number of values that turn",
                    r->gguf != NULL ? ".rope.dimension_count" : "", rope->dim);
    rope->magnitude = scaling.magnitude;
    return what->unscaled && !scaling.own ? STATUS_OK : apply(r, &scaling, what);
}

status_t arch_latent_mscale(const arch_reader_t *r, float *out)
{
    scaling_t scaling;
    float base = 1;
    TRY(read_scaling(r, NULL, NULL, &scaling, &base));
    *out = 1;
    if (scaling.magnitude != 1)
        return fail(STATUS_UNSUPPORTED, "%s: key %s.rope.scaling.attn_factor is %g; with latent "
                    "attention only 1 is supported", r->where, r->prefix,
                    (double)scaling.magnitude);
    if (strcmp(scaling.type, "yarn") == 0 && scaling.mscale_all_dim != 0) {
        double m = mscale_of((double)scaling.factor, (double)scaling.mscale_all_dim);
        *out = (float)(m * m);
    }
    return STATUS_OK;
}
