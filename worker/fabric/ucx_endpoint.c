/* The process's UCX worker: which devices it uses, its address, and the door through which frames of
 * all epochs come in. Frames of older epochs are refused here, newer ones are held. */
#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <xxhash.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/fabric/ucx.h"

#define LINK_WAIT_MS 3000u

static status_t ucx_failed(const char *what, ucs_status_t status)
{
    return fail(STATUS_INTERNAL, "%s: %s", what, ucs_status_string(status));
}

/* The network interface that carries an IP address; *running_out: its link is up. */
static status_t look_for_interface(const char *address, char *out, size_t n, bool *running_out)
{
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0)
        return fail(STATUS_INTERNAL, "cannot list network interfaces: %m");
    bool found = false;
    for (struct ifaddrs *one = all; one && !found; one = one->ifa_next) {
        char text[INET6_ADDRSTRLEN] = "";
        if (!one->ifa_addr)
            continue;
        if (one->ifa_addr->sa_family == AF_INET)
            inet_ntop(AF_INET, &((struct sockaddr_in *)(void *)one->ifa_addr)->sin_addr, text,
                      sizeof text);
        else if (one->ifa_addr->sa_family == AF_INET6)
            inet_ntop(AF_INET6, &((struct sockaddr_in6 *)(void *)one->ifa_addr)->sin6_addr, text,
                      sizeof text);
        if (strcmp(text, address) == 0) {
            snprintf(out, n, "%s", one->ifa_name);
            *running_out = (one->ifa_flags & IFF_RUNNING) != 0;
            found = true;
        }
    }
    freeifaddrs(all);
    if (!found)
        return fail(STATUS_INVALID, "no network interface of this host has the address %s",
                    address);
    return STATUS_OK;
}

/* UCX looks at the devices once, when it starts: an endpoint made while the link is down would stay
 * without one for as long as the rank lives. So a link that is coming up is waited for. */
static status_t find_interface(const char *address, char *out, size_t n)
{
    uint64_t end = clock_ms() + LINK_WAIT_MS;
    for (;;) {
        bool running = false;
        TRY(look_for_interface(address, out, n, &running));
        if (running)
            return STATUS_OK;
        if (clock_ms() >= end)
            return fail(STATUS_UNREACHABLE, "network interface %s (%s) has no link", out, address);
        struct timespec nap = {0, 20000000};
        nanosleep(&nap, NULL);
    }
}

/* UCX takes all interfaces by default, the loopback among them, and a peer on another host would be
 * offered addresses that it cannot reach. So the one interface is named, and every RDMA port. */
static void add_rdma_ports(char *list, size_t n)
{
    DIR *devices = opendir("/sys/class/infiniband");
    if (!devices)
        return;
    for (struct dirent *device; (device = readdir(devices));) {
        if (device->d_name[0] == '.')
            continue;
        char path[512];
        snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports", device->d_name);
        DIR *ports = opendir(path);
        if (!ports)
            continue;
        for (struct dirent *port; (port = readdir(ports));) {
            size_t used = strlen(list);
            if (port->d_name[0] != '.')
                snprintf(list + used, n - used, ",%s:%s", device->d_name, port->d_name);
        }
        closedir(ports);
    }
    closedir(devices);
}

static status_t open_context(fabric_endpoint_t *endpoint, const char *address)
{
    char devices[1024];
    TRY(find_interface(address, devices, sizeof devices));
    TRY(ucx_late_open());
    add_rdma_ports(devices, sizeof devices);
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return ucx_failed("cannot read UCX's configuration", status);
    if (!getenv("UCX_NET_DEVICES"))
        status = ucp_config_modify(config, "NET_DEVICES", devices);
    /* A connect to a dead host must not stop the heartbeats to the living ones. */
    if (status == UCS_OK)
        status = ucp_config_modify(config, "CONN_NB", "y");
    if (status == UCS_OK) {
        ucp_params_t params = {
            .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
            .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
            .name = "shoal",
        };
        status = ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config,
                                  &endpoint->context);
    }
    ucp_config_release(config);
    if (status != UCS_OK)
        return ucx_failed("cannot start UCX", status);
    return STATUS_OK;
}

static bool is_older(const fabric_endpoint_t *endpoint, const frame_t *frame)
{
    if (frame->incarnation != endpoint->incarnation)
        return frame->incarnation < endpoint->incarnation;
    return frame->epoch < endpoint->epoch;
}

static bool is_this(const fabric_endpoint_t *endpoint, const frame_t *frame)
{
    return frame->incarnation == endpoint->incarnation && frame->epoch == endpoint->epoch;
}

static void refuse(fabric_endpoint_t *endpoint)
{
    if (endpoint->open)
        atomic_fetch_add_explicit(&endpoint->open->frames_refused, 1, memory_order_relaxed);
}

static void hold(fabric_endpoint_t *endpoint, const frame_t *frame, const uint8_t *payload)
{
    held_list_t *list = &endpoint->held[frame->from];
    size_t bytes = sizeof(held_frame_t) + frame->bytes;
    if (list->bytes + bytes > FRAME_HELD_BYTES_MAX) {
        refuse(endpoint);
        return;
    }
    held_frame_t *held = mem_new(1, bytes);
    held->frame = *frame;
    if (frame->bytes > 0)
        memcpy(held->payload, payload, frame->bytes);
    if (!list->last)
        list->last = &list->first;
    *list->last = held;
    list->last = &held->next;
    list->bytes += bytes;
    if (endpoint->open)
        atomic_fetch_add_explicit(&endpoint->open->frames_held, 1, memory_order_relaxed);
}

void ucx_replay_held(fabric_endpoint_t *endpoint)
{
    for (uint32_t from = 0; from < FABRIC_RANKS_MAX; from++) {
        held_frame_t *next, *held = endpoint->held[from].first;
        endpoint->held[from] = (held_list_t){0};
        for (; held; held = next) {
            next = held->next;
            if (is_this(endpoint, &held->frame))
                ucx_take_frame(endpoint->open, &held->frame, held->payload);
            else if (!is_older(endpoint, &held->frame))
                hold(endpoint, &held->frame, held->payload);
            free(held);
        }
    }
}

/* Called by UCX inside progress, so with the mutex held. Must not send more than a short frame and
 * must not close anything. */
static ucs_status_t on_frame(void *argument, const void *header, size_t header_bytes, void *data,
                             size_t bytes, const ucp_am_recv_param_t *param)
{
    fabric_endpoint_t *endpoint = argument;
    frame_t frame;
    if (header_bytes != sizeof frame || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        refuse(endpoint);
        return UCS_OK;
    }
    memcpy(&frame, header, sizeof frame);
    if (frame.magic != FRAME_MAGIC || frame.version != FRAME_VERSION || frame.bytes != bytes ||
        bytes > FRAME_PAYLOAD_MAX || frame.from >= FABRIC_RANKS_MAX) {
        refuse(endpoint);
        return UCS_OK;
    }
    bool is_open = endpoint->open && is_this(endpoint, &frame);
    if (is_open)
        ucx_take_frame(endpoint->open, &frame, data);
    else if (is_older(endpoint, &frame) || is_this(endpoint, &frame))
        refuse(endpoint);
    else
        hold(endpoint, &frame, data);
    return UCS_OK;
}

static status_t open_worker(fabric_endpoint_t *endpoint)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS,
        .thread_mode = UCS_THREAD_MODE_SERIALIZED,
        .events = UCP_WAKEUP_RX | UCP_WAKEUP_TX,
    };

    ucs_status_t status = ucp_worker_create(endpoint->context, &params, &endpoint->worker);
    if (status != UCS_OK)
        return ucx_failed("cannot make a UCX worker", status);
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
        .id = FRAME_ACTIVE_MESSAGE,
        .cb = on_frame,
        .arg = endpoint,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
    };
    status = ucp_worker_set_am_recv_handler(endpoint->worker, &handler);
    if (status == UCS_OK)
        status = ucp_worker_get_efd(endpoint->worker, &endpoint->event_fd);
    if (status != UCS_OK)
        return ucx_failed("cannot set up a UCX worker", status);
    /* Addresses of shared memory are left out: inside a host the rings carry everything. */
    ucp_worker_attr_t attributes = {
        .field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS | UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS,
        .address_flags = UCP_WORKER_ADDRESS_FLAG_NET_ONLY,
    };
    status = ucp_worker_query(endpoint->worker, &attributes);
    if (status != UCS_OK)
        return ucx_failed("cannot ask for the UCX worker's address", status);
    size_t n = attributes.address_length;
    bool fits = n + UCX_ADDRESS_HEAD_BYTES <= sizeof endpoint->address;
    if (fits) {
        uint64_t sum = XXH64(attributes.address, n, 0);
        memcpy(endpoint->address, &sum, sizeof sum);
        memcpy(endpoint->address + UCX_ADDRESS_HEAD_BYTES, attributes.address, n);
        endpoint->address_bytes = n + UCX_ADDRESS_HEAD_BYTES;
    }
    ucp_worker_release_address(endpoint->worker, attributes.address);
    if (!fits)
        return fail(STATUS_EXHAUSTED, "a UCX address of %zu bytes; at most %zu fit", n,
                    sizeof endpoint->address - UCX_ADDRESS_HEAD_BYTES);
    return STATUS_OK;
}

status_t fabric_endpoint_open(const char *address, fabric_endpoint_t **own_out)
{
    fabric_endpoint_t *endpoint = MEM_NEW(fabric_endpoint_t);
    pthread_mutex_init(&endpoint->mutex, NULL);
    status_t status = open_context(endpoint, address);
    if (status == STATUS_OK)
        status = open_worker(endpoint);
    if (status != STATUS_OK) {
        fabric_endpoint_close(endpoint);
        return status;
    }
    *own_out = endpoint;
    return STATUS_OK;
}

void fabric_endpoint_address(const fabric_endpoint_t *endpoint, const uint8_t **bytes_out,
                             size_t *n_out)
{
    *bytes_out = endpoint->address;
    *n_out = endpoint->address_bytes;
}

void fabric_endpoint_close(fabric_endpoint_t *take_endpoint)
{
    if (!take_endpoint)
        return;
    CHECK(!take_endpoint->open);
    if (take_endpoint->worker) {
        ucx_shut_stuck_sockets();
        ucp_worker_destroy(take_endpoint->worker);
    }
    if (take_endpoint->context)
        ucp_cleanup(take_endpoint->context);
    for (uint32_t from = 0; from < FABRIC_RANKS_MAX; from++) {
        held_frame_t *next;
        for (held_frame_t *held = take_endpoint->held[from].first; held; held = next) {
            next = held->next;
            free(held);
        }
    }
    pthread_mutex_destroy(&take_endpoint->mutex);
    free(take_endpoint);
}
