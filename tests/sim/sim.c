/* The simulator's clock and chance: one queue of what happens when, one generator. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

typedef struct {
    heap_place_t place;
    sim_fn fn;
    void *argument;
    sim_release_fn release;
} happening_t;

void sim_after(sim_t *sim, uint64_t delay_ms, sim_fn fn, void *argument)
{
    sim_after_with(sim, delay_ms, fn, argument, free);
}

void sim_after_with(sim_t *sim, uint64_t delay_ms, sim_fn fn, void *argument,
                    sim_release_fn release)
{
    happening_t *h = MEM_NEW(happening_t);
    h->fn = fn;
    h->argument = argument;
    h->release = release;
    heap_push(&sim->queue, h, &h->place, sim->now_ms + delay_ms, ++sim->number);
}

uint64_t sim_random(sim_t *sim)
{
    sim->random = sim_mix(sim->random, 0x51ED270B);
    return sim->random;
}

uint64_t sim_below(sim_t *sim, uint64_t n)
{
    return (sim_random(sim) >> 11) % n;
}

bool sim_chance(sim_t *sim, unsigned in_1000)
{
    return sim_below(sim, 1000) < in_1000;
}

uint64_t sim_delay(sim_t *sim)
{
    uint64_t delay = 1 + sim_below(sim, 5);
    if (sim->now_ms < SIM_FAULTS_END_MS && sim_chance(sim, 20))
        delay += sim_below(sim, 300);
    return delay;
}

void sim_violate(sim_t *sim, const char *format, ...)
{
    if (*sim->violation)
        return;
    int n = snprintf(sim->violation, sizeof sim->violation, "at %llu ms: ",
                     (unsigned long long)sim->now_ms);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim->violation + n, sizeof sim->violation - (size_t)n, format, arguments);
    va_end(arguments);
    sim->stopped = true;
    sim_trace(sim, "VIOLATION %s", sim->violation);
}

void sim_trace(sim_t *sim, const char *format, ...)
{
    if (!sim->tracing)
        return;
    fprintf(stderr, "%8llu ", (unsigned long long)sim->now_ms);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

static void deploy(sim_t *sim, void *argument)
{
    (void)argument;
    Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
    char name[] = "toy", digest[] = "sha256:toy", activations[] = "native", path[] = "/toy.gguf";
    d.name = d.model_name = name;
    d.model_digest = digest;
    d.model_path = path;
    d.replicas = sim->replicas;
    d.tp = sim->tp;
    d.stages = sim->stages;
    d.context_max = 128;
    d.activations = activations;
    uint8_t bytes[256];
    size_t n = shoal__cluster__v1__deployment_record__pack(&d, bytes);
    etcd_put(sim, "deployments/toy", bytes, n, 0);
}

void sim_deploy(sim_t *sim)
{
    deploy(sim, NULL);
}

static sim_t *start(uint64_t seed, uint32_t mutant, bool tracing)
{
    sim_t *sim = MEM_NEW(sim_t);
    sim->seed = seed;
    sim->random = sim_mix(seed, 1);
    sim->mutant = mutant;
    sim->tracing = tracing;
    sim->incarnation = 1;
    sim->tp = 1 + (uint32_t)sim_below(sim, 2);
    sim->stages = 1 + (uint32_t)sim_below(sim, 2);
    sim->replicas = 1 + (uint32_t)sim_below(sim, SIM_SLOTS);
    for (unsigned bit = 0; bit < FAULT_BITS; bit++)
        if (sim_chance(sim, (1u << bit) & (FAULT_EMPTY_ETCD | FAULT_EMPTY_REDIS) ? 60 : 350))
            sim->faults |= 1u << bit;
    etcd_start(sim);
    redis_start(sim);
    sim_deploy(sim);
    for (uint32_t i = 0; i < SIM_HOSTS; i++)
        host_start(sim, i);
    for (uint32_t i = 0; i < SIM_COORDINATORS; i++)
        coordinator_start(sim, i);
    clients_start(sim);
    jobs_start(sim);
    faults_start(sim);
    return sim;
}

bool sim_run(uint64_t seed, uint32_t mutant, bool tracing, char violation_out[512])
{
    sim_t *sim = start(seed, mutant, tracing);
    sim_trace(sim, "seed %llu: faults %x, %u replicas of tp %u x stages %u",
              (unsigned long long)seed, sim->faults, sim->replicas, sim->tp, sim->stages);
    const heap_entry_t *first;
    while (!sim->stopped && (first = heap_first(&sim->queue)) && first->major <= SIM_END_MS) {
        happening_t *h = first->thing;
        sim->now_ms = first->major;
        sim->n_events++;
        heap_remove(&sim->queue, &h->place);
        sim_fn fn = h->fn;
        void *argument = h->argument;
        free(h);
        fn(sim, argument);
        if (sim->now_ms > SIM_FAULTS_END_MS && sim->n_events % 64 == 0 && check_finished(sim))
            break;
    }
    if (!sim->stopped)
        check_end(sim);
    sim_dump(sim);
    strcpy(violation_out, sim->violation);
    sim_trace(sim, "%llu events", (unsigned long long)sim->n_events);
    bool good = !*sim->violation;
    coordinator_free(sim);
    leaders_free(sim);
    host_free(sim);
    etcd_free(sim);
    while ((first = heap_first(&sim->queue))) {
        happening_t *h = first->thing;
        heap_remove(&sim->queue, &h->place);
        h->release(h->argument);
        free(h);
    }
    heap_release(&sim->queue);
    free(sim);
    return good;
}
