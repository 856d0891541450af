/* See deployment_view.h. */
#include "cli/deployment_view.h"

json_t *deployment_json(const Shoal__V1__Deployment *deployment)
{
    json_t *view = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:s,s:s,s:I,s:s}", "name", deployment->name, "model",
                     deployment->model_path, "digest", deployment->model_digest, "replicas",
                     (json_int_t)deployment->replicas, "tp", (json_int_t)deployment->tp, "stages",
                     (json_int_t)deployment->stages, "expert_groups", (json_int_t)deployment->expert_groups,
                     "attention_slices", (json_int_t)deployment->attention_slices,
                     "attention_replicas", (json_int_t)deployment->attention_replicas, "context_max",
                     (json_int_t)deployment->context_max,
                     "activations", deployment->activations, "quantize", deployment->quantize, "kv",
                     deployment->kv[0] ? deployment->kv : "bf16", "version",
                     (json_int_t)deployment->version, "message", deployment->message);
    json_object_set_new(view, "draft_model", json_string(deployment->draft_path));
    return view;
}
