/* How a deployment is shown: by those who change one and by `shoal status`. */
#ifndef SHOAL_CLI_DEPLOYMENT_VIEW_H
#define SHOAL_CLI_DEPLOYMENT_VIEW_H

#include <jansson.h>

#include "shoal/v1/admin.pb-c.h"

/* {name, model, digest, replicas, tp, stages, context_max, activations, quantize, kv, version, message}. */
json_t *deployment_json(const Shoal__V1__Deployment *deployment);

#endif
