/* What a model weighs: parameters, those that one token uses, bytes by type, and what a token
 * leaves in the caches. For people (`shoal inspect`) and for the planner's outlook; what a rank
 * needs is plan.h's business. Pure; any thread. */
#ifndef SHOAL_COMMON_MODEL_FOOTPRINT_H
#define SHOAL_COMMON_MODEL_FOOTPRINT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/model.h"

enum { FOOTPRINT_TYPES_MAX = 48, FOOTPRINT_CACHES_MAX = 16 };

typedef struct {
    const char *name; /* "BF16", "Q4_K", "AWQ 4 bit": as stored */
    uint64_t n_tensors;
    uint64_t values;
    uint64_t bytes; /* as stored */
} footprint_type_t;

/* Layers whose caches look alike. */
typedef struct {
    const char *kind;   /* "grouped", "latent", "compressed" */
    uint32_t n_layers;
    uint32_t window;    /* keys that are seen; 0: all */
    uint32_t rate;      /* positions of a compressed entry; 0: none */
    bool indexed;       /* keys are chosen by an indexer, which caches keys of its own */
    uint64_t bytes_per_token; /* of one such layer, with BF16 elements */
} footprint_cache_t;

typedef struct {
    uint64_t parameters;        /* a tied head once; without layers for drafting and id tables */
    uint64_t active_parameters; /* what one token multiplies: of the experts those that are used;
                                   not the embedding, of which it copies a row */
    uint64_t bytes;             /* of the weights in the types that ranks read them in */
    uint32_t n_types;
    /* Of all tensors of the files, largest first; of an outline of its views. */
    footprint_type_t types[FOOTPRINT_TYPES_MAX];
    uint32_t n_caches;
    footprint_cache_t caches[FOOTPRINT_CACHES_MAX];
    uint32_t kv_window; /* all layers', behind which a sequence keeps nothing; 0: it keeps all */
    uint64_t kv_bytes_per_token; /* of all layers, BF16, on one rank that holds all heads */
    uint64_t kv_code_bytes_per_token; /* the same as 8-bit codes; 0 where it cannot be */
} footprint_t;

void footprint_of_model(const model_t *model, footprint_t *out);

/* Of a model that is not supported: its tensors alone, everything else is 0. */
void footprint_of_source(const source_t *source, footprint_t *out);

#endif
