/* The machines of a plan that nobody has yet: hosts with devices, as `shoal plan --hosts FILE`
 * reads them. Known devices have defaults from their makers' data sheets (hosts_devices.c);
 * everything can be given and then wins.
 *
 *     {"hosts": [{"name": "node", "count": 2, "link_gb_s": 50,
 *                 "devices": [{"name": "H100-80", "count": 8}]}]}
 *
 * The file is untrusted: sizes are bounded, unknown members are refused by name. */
#ifndef SHOAL_COMMON_MODEL_HOSTS_FILE_H
#define SHOAL_COMMON_MODEL_HOSTS_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/json.h"
#include "common/base/qtype.h"
#include "common/base/status.h"

enum { HOSTS_MAX = 1024, HOSTS_DEVICES_MAX = 4096, HOSTS_NAME_SIZE = 48 };

/* What is multiplied: a device has a rate for each. 0: it has none of its own. */
typedef enum {
    HOSTS_F32,
    HOSTS_BF16,
    HOSTS_FP8,
    HOSTS_INT8,
    HOSTS_N_COMPUTE,
} hosts_compute_t;

typedef struct {
    char name[HOSTS_NAME_SIZE];
    uint64_t memory_bytes;  /* as the driver reports it */
    uint64_t reserve_bytes; /* of that, what ranks cannot have: driver, libraries, fragments */
    double memory_bytes_s;  /* bandwidth */
    double flops_s[HOSTS_N_COMPUTE]; /* dense; a multiplication and its addition are two */
    double link_bytes_s;    /* to the other devices of its host, in one direction */
    double link_s;          /* what an exchange over it costs besides */
} hosts_device_t;

typedef struct {
    char name[HOSTS_NAME_SIZE];
    double link_bytes_s; /* of the host, to other hosts, in one direction; 0: there are none */
    double link_s;
    uint32_t device_first, n_devices; /* of hosts_file_t.devices */
} hosts_host_t;

typedef struct {
    uint32_t n_hosts, n_devices;
    hosts_host_t *hosts;
    hosts_device_t *devices; /* host by host */
    uint32_t *host_of;       /* by device */
} hosts_file_t;

status_t hosts_file_read(const char *path, hosts_file_t *out) MUST_USE;
status_t hosts_file_parse(const char *name, const void *text, size_t n, hosts_file_t *out) MUST_USE;
void hosts_file_release(hosts_file_t *hosts);

/* `n` devices as device `like` of `from`, each host with as many as the host of that one. */
void hosts_file_alike(const hosts_file_t *from, uint32_t like, uint32_t n, hosts_file_t *out);

/* The rate for weights of a row type: INT8 for integer blocks, FP8 for e4m3, BF16 for halves; what
 * a device has none of falls back to BF16, then F32. */
double hosts_flops_s(const hosts_device_t *device, qtype_t weights);

/* --- known devices (hosts_devices.c) --- */

/* False when there is no such name; letter case does not matter. */
bool hosts_device_known(const char *name, hosts_device_t *out) MUST_USE;
/* "A100-40, A100-80, …", for people. */
const char *hosts_device_names(void);

#endif
