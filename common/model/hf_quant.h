/* What quantization_config says, and the work of finding the parts of quantized matrices. Only
 * hf_quant*.c include it. */
#ifndef SHOAL_COMMON_MODEL_HF_QUANT_H
#define SHOAL_COMMON_MODEL_HF_QUANT_H

#include "common/model/source_internal.h"

typedef enum {
    HF_NONE,
    HF_AWQ,
    HF_GPTQ,
    HF_FP8,
    HF_COMPRESSED,
    HF_MXFP4,
} hf_method_t;

typedef struct {
    source_t *source;
    hf_method_t method;
    uint64_t bits;                 /* of compressed-tensors 0 or 4 */
    uint64_t group;                /* 0: one for a whole row */
    uint64_t block_rows, block_columns;
    bool zeros_are_less_one;       /* GPTQ v1 stores zero points less one */
    bool gpt_oss;
    char name[SAFETENSORS_NAME_BYTES_MAX + 64]; /* of the part looked for last */
} hf_quant_t;

/* Fills all but source and name from source->config. STATUS_UNSUPPORTED names what cannot be
 * read. */
status_t hf_quant_read_config(hf_quant_t *quant) MUST_USE;

/* Values that share a scale, for the type of a matrix with one group: the configuration's and not
 * the matrix's, so that an outline, which has no matrix, says the same. Any multiple of 32. */
uint64_t hf_quant_run(const hf_quant_t *quant);

#endif
