/* Reading the file of hosts. See hosts_file.h. */
#include "common/model/hosts_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

#define GIB 1073741824.0
#define GIGA 1e9

static status_t only_these(const json_t *object, const char *where, const char *const *allowed)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        size_t i = 0;
        while (allowed[i] != NULL && strcmp(allowed[i], key) != 0)
            i++;
        if (allowed[i] == NULL)
            return fail(STATUS_INVALID, "%s: \"%.40s\" is not known here", where, key);
    }
    return STATUS_OK;
}

/* A number in [min, max], times `unit`; an absent one leaves *out as it is. */
static status_t read_scaled(const json_t *object, const char *where, const char *key, double min,
                            double max, double unit, double *out)
{
    double value = 0;
    if (json_object_get(object, key) == NULL)
        return STATUS_OK;
    TRY(json_get_number(object, where, key, &value));
    if (!(value >= min && value <= max))
        return fail(STATUS_INVALID, "%s: \"%s\" is %g; %g to %g would be right", where, key, value,
                    min, max);
    *out = value * unit;
    return STATUS_OK;
}

static status_t read_gib(const json_t *object, const char *where, const char *key, double min,
                         uint64_t *out)
{
    double bytes = (double)*out;
    TRY(read_scaled(object, where, key, min, 1e6, GIB, &bytes));
    *out = (uint64_t)bytes;
    return STATUS_OK;
}

static status_t read_tflops(const json_t *device, const char *where, hosts_device_t *out)
{
    static const char *const keys[HOSTS_N_COMPUTE + 1] = {"f32", "bf16", "fp8", "int8", NULL};
    const json_t *rates = NULL;
    char inside[256];
    TRY(json_may_object(device, where, "tflops", &rates));
    if (rates == NULL)
        return STATUS_OK;
    snprintf(inside, sizeof inside, "%s: tflops", where);
    TRY(only_these(rates, inside, keys));
    for (size_t i = 0; i < HOSTS_N_COMPUTE; i++)
        TRY(read_scaled(rates, inside, keys[i], 0, 1e6, 1e12, &out->flops_s[i]));
    return STATUS_OK;
}

/* A device with what its name says by default; a name that nobody knows is fine when all is
 * given. */
static status_t read_device(const json_t *device, const char *where, hosts_device_t *out)
{
    static const char *const keys[] = {"name", "count", "memory_gib", "reserve_gib",
                                       "bandwidth_gb_s", "tflops", "link_gb_s", "link_us", NULL};
    const char *name = "device";
    TRY(only_these(device, where, keys));
    TRY(json_may_text(device, where, "name", &name, NULL));
    if (!hosts_device_known(name, out)) {
        *out = (hosts_device_t){.link_s = 5e-6};
        snprintf(out->name, sizeof out->name, "%s", name);
    }
    TRY(read_gib(device, where, "memory_gib", 1e-3, &out->memory_bytes));
    TRY(read_gib(device, where, "reserve_gib", 0, &out->reserve_bytes));
    TRY(read_scaled(device, where, "bandwidth_gb_s", 1e-3, 1e6, GIGA, &out->memory_bytes_s));
    TRY(read_scaled(device, where, "link_gb_s", 1e-6, 1e6, GIGA, &out->link_bytes_s));
    TRY(read_scaled(device, where, "link_us", 0, 1e6, 1e-6, &out->link_s));
    TRY(read_tflops(device, where, out));
    bool rated = out->flops_s[HOSTS_F32] > 0 || out->flops_s[HOSTS_BF16] > 0;
    if (out->memory_bytes == 0 || out->memory_bytes_s <= 0 || !rated)
        return fail(STATUS_INVALID, "%s: \"%s\" is no known device, so memory_gib, bandwidth_gb_s "
                    "and tflops (f32 or bf16 at least) must be given; known are %s", where,
                    out->name, hosts_device_names());
    if (out->reserve_bytes >= out->memory_bytes)
        return fail(STATUS_INVALID, "%s: reserve_gib leaves nothing of memory_gib", where);
    return STATUS_OK;
}

static status_t add_devices(const json_t *list, const char *where, hosts_file_t *out)
{
    hosts_host_t *host = &out->hosts[out->n_hosts];
    for (size_t i = 0; i < json_array_size(list); i++) {
        char inside[256];
        hosts_device_t device;
        uint64_t count = 1;
        snprintf(inside, sizeof inside, "%s: devices[%zu]", where, i);
        const json_t *object = json_array_get(list, i);
        if (!json_is_object(object))
            return fail(STATUS_INVALID, "%s must be an object", inside);
        TRY(read_device(object, inside, &device));
        TRY(json_may_u64(object, inside, "count", 1, HOSTS_DEVICES_MAX, &count));
        if (count > HOSTS_DEVICES_MAX - out->n_devices)
            return fail(STATUS_INVALID, "%s: more than %d devices in all", inside,
                        HOSTS_DEVICES_MAX);
        for (uint64_t k = 0; k < count; k++) {
            out->devices[out->n_devices] = device;
            out->host_of[out->n_devices++] = out->n_hosts;
        }
    }
    host->n_devices = out->n_devices - host->device_first;
    if (host->n_devices == 0)
        return fail(STATUS_INVALID, "%s has no devices", where);
    for (uint32_t i = 0; host->n_devices > 1 && i < host->n_devices; i++)
        if (out->devices[host->device_first + i].link_bytes_s <= 0)
            return fail(STATUS_INVALID, "%s: link_gb_s of its devices is missing", where);
    return STATUS_OK;
}

static status_t add_hosts(const json_t *object, const char *where, hosts_file_t *out)
{
    static const char *const keys[] = {"name", "count", "link_gb_s", "link_us", "devices", NULL};
    const json_t *devices;
    const char *name = "host";
    uint64_t count = 1;
    TRY(only_these(object, where, keys));
    TRY(json_may_text(object, where, "name", &name, NULL));
    TRY(json_may_u64(object, where, "count", 1, HOSTS_MAX, &count));
    TRY(json_get_array(object, where, "devices", &devices));
    for (uint64_t i = 0; i < count; i++) {
        if (out->n_hosts == HOSTS_MAX)
            return fail(STATUS_INVALID, "%s: more than %d hosts", where, HOSTS_MAX);
        hosts_host_t *host = &out->hosts[out->n_hosts];
        *host = (hosts_host_t){.device_first = out->n_devices, .link_s = 10e-6};
        snprintf(host->name, sizeof host->name, count > 1 ? "%.40s-%llu" : "%.40s", name,
                 (unsigned long long)i);
        TRY(read_scaled(object, where, "link_gb_s", 1e-6, 1e6, GIGA, &host->link_bytes_s));
        TRY(read_scaled(object, where, "link_us", 0, 1e6, 1e-6, &host->link_s));
        TRY(add_devices(devices, where, out));
        out->n_hosts++;
    }
    return STATUS_OK;
}

static status_t read_object(const char *name, const json_t *object, hosts_file_t *out)
{
    static const char *const keys[] = {"hosts", NULL};
    const json_t *list;
    TRY(only_these(object, name, keys));
    TRY(json_get_array(object, name, "hosts", &list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        char where[160];
        snprintf(where, sizeof where, "%.100s: hosts[%zu]", name, i);
        if (!json_is_object(json_array_get(list, i)))
            return fail(STATUS_INVALID, "%s must be an object", where);
        TRY(add_hosts(json_array_get(list, i), where, out));
    }
    if (out->n_hosts == 0)
        return fail(STATUS_INVALID, "%s: there are no hosts", name);
    for (uint32_t i = 0; out->n_hosts > 1 && i < out->n_hosts; i++)
        if (out->hosts[i].link_bytes_s <= 0)
            return fail(STATUS_INVALID, "%s: host %s: link_gb_s, the bandwidth to the other hosts, "
                        "is missing", name, out->hosts[i].name);
    return STATUS_OK;
}

static void allocate(hosts_file_t *out)
{
    out->hosts = MEM_NEW_ARRAY(hosts_host_t, HOSTS_MAX);
    out->devices = MEM_NEW_ARRAY(hosts_device_t, HOSTS_DEVICES_MAX);
    out->host_of = MEM_NEW_ARRAY(uint32_t, HOSTS_DEVICES_MAX);
}

static status_t take_object(const char *name, json_t *take_object, hosts_file_t *out)
{
    hosts_file_t hosts = {0};
    allocate(&hosts);
    status_t status = read_object(name, take_object, &hosts);
    json_decref(take_object);
    if (status != STATUS_OK) {
        hosts_file_release(&hosts);
        return status;
    }
    *out = hosts;
    return STATUS_OK;
}

status_t hosts_file_read(const char *path, hosts_file_t *out)
{
    json_t *object;
    TRY(json_read_file(path, NULL, &object));
    return take_object(path, object, out);
}

status_t hosts_file_parse(const char *name, const void *text, size_t n, hosts_file_t *out)
{
    json_t *object;
    TRY(json_read_object(name, text, n, NULL, &object));
    return take_object(name, object, out);
}

void hosts_file_release(hosts_file_t *hosts)
{
    free(hosts->hosts);
    free(hosts->devices);
    free(hosts->host_of);
    *hosts = (hosts_file_t){0};
}

void hosts_file_alike(const hosts_file_t *from, uint32_t like, uint32_t n, hosts_file_t *out)
{
    const hosts_host_t *host = &from->hosts[from->host_of[like]];
    CHECK(n > 0 && n <= HOSTS_MAX);
    *out = (hosts_file_t){0};
    allocate(out);
    for (uint32_t i = 0; i < n; i++) {
        if (i % host->n_devices == 0) {
            out->hosts[out->n_hosts] = *host;
            out->hosts[out->n_hosts].device_first = i;
            out->hosts[out->n_hosts++].n_devices = 0;
        }
        out->hosts[out->n_hosts - 1].n_devices++;
        out->devices[i] = from->devices[like];
        out->host_of[i] = out->n_hosts - 1;
    }
    out->n_devices = n;
}

double hosts_flops_s(const hosts_device_t *device, qtype_t weights)
{
    hosts_compute_t wanted;
    switch (weights) {
    case QTYPE_F32: wanted = HOSTS_F32; break;
    case QTYPE_F16:
    case QTYPE_BF16: wanted = HOSTS_BF16; break;
    case QTYPE_F8S: wanted = HOSTS_FP8; break;
    default: wanted = HOSTS_INT8; break;
    }
    double rate = device->flops_s[wanted];
    if (rate <= 0)
        rate = device->flops_s[HOSTS_BF16];
    return rate > 0 ? rate : device->flops_s[HOSTS_F32];
}
