/* The file in which `shoal up` writes where its cluster is, <data>/cluster.json, and how commands
 * find the coordinators to speak to: --endpoint, else SHOAL_ENDPOINT, else that file. */
#ifndef SHOAL_CLI_CLUSTER_FILE_H
#define SHOAL_CLI_CLUSTER_FILE_H

#include <jansson.h>
#include <stddef.h>

#include "common/base/options.h"

enum { ENDPOINTS_MAX = 16 };

typedef struct {
    const char *data;     /* --data; NULL takes the default */
    const char *endpoint; /* --endpoint HOST:PORT[,HOST:PORT…]; NULL reads the file */
} cluster_options_t;

/* Rows for an option table. */
#define CLUSTER_DATA_OPTION(where)                                                                 \
    {"data", OPTION_TEXT, &(where).data, NULL, "DIR", "where `shoal up` keeps its cluster "        \
                                                      "[~/.local/state/shoal]"}
#define CLUSTER_ENDPOINT_OPTION(where)                                                             \
    {"endpoint", OPTION_TEXT, &(where).endpoint, NULL, "HOST:PORT,…",                             \
     "coordinators to speak to [those of the cluster in --data]"}

/* The data directory, made if need be; the caller frees it. For `shoal up` alone: */
status_t cluster_data_dir(const char *data, char **own_out) MUST_USE;
/* whoever looks for a cluster makes nothing. A directory that was named and is not there is NOT_FOUND
 * (a slip of the pen, most often), the default one is UNREACHABLE as a cluster that is not up. */
status_t cluster_data_dir_find(const char *data, char **own_out) MUST_USE;

/* Reads <data>/cluster.json; UNREACHABLE when no cluster was started there. */
status_t cluster_file_read(const char *data_dir, json_t **own_out) MUST_USE;
/* Writes it whole: a reader sees the old or the new content. */
status_t cluster_file_write(const char *data_dir, const json_t *content) MUST_USE;

/* The coordinators' endpoints, at least one; the caller frees each. */
status_t cluster_endpoints(const cluster_options_t *where, char *own_out[ENDPOINTS_MAX],
                           size_t *n_out) MUST_USE;

#endif
