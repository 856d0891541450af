/* See kv_type.h. */
#include "common/model/kv_type.h"

#include <string.h>

#include "common/model/plan.h"

bool kv_type_is_codes(const char *kv)
{
    return kv != NULL && (strcmp(kv, "int8") == 0 || strcmp(kv, "fp8") == 0);
}

const char *kv_type_name(const char *kv, bool activations_f32)
{
    if (activations_f32)
        return "f32";
    return kv != NULL && kv[0] != 0 ? kv : "bf16";
}

status_t kv_type_check(const char *kv, bool activations_f32)
{
    if (kv == NULL || kv[0] == 0 || strcmp(kv, "bf16") == 0)
        return STATUS_OK;
    if (!kv_type_is_codes(kv))
        return fail(STATUS_INVALID, "kv: \"%.20s\" is none of bf16, int8 and fp8", kv);
    if (activations_f32)
        return fail(STATUS_INVALID, "kv: %s goes with native activations; f32 ones keep F32", kv);
    return STATUS_OK;
}

bool kv_type_may_be_codes(const model_config_t *config)
{
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        if (config->layers[layer].attention != MODEL_ATTENTION_GROUPED)
            return false;
    return true;
}

status_t kv_type_check_model(const char *kv, const model_config_t *config)
{
    if (kv_type_is_codes(kv) && !kv_type_may_be_codes(config))
        return fail(STATUS_UNSUPPORTED, "kv: %s is for ordinary keys and values; this model's "
                    "latent or compressed ones are kept as bf16", kv);
    return STATUS_OK;
}
