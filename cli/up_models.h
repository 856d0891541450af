/* The models folder of a cluster that `shoal up` runs on this machine. */
#ifndef SHOAL_CLI_UP_MODELS_H
#define SHOAL_CLI_UP_MODELS_H

#include "cli/cluster_file.h"

/* Makes the model at `path`, a file or a directory, known to the cluster that the options mean, when
 * that is one of `shoal up` in --data: its host offers what lies in DATA/models, so a link is put
 * there.
 * *own_path_out is the path to deploy; for any other cluster it is `path` as it was given, because
 * its hosts have their own models. */
status_t up_offer_model(const cluster_options_t *where, const char *path,
                        char **own_path_out) MUST_USE;

#endif
