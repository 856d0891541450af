/* Leaders: the real scheduler of worker/engine, a model of the ranks (the next token is a hash) and
 * of the Engine service (Hello, Admit, Cancel, StepOutput; docs/design.md, "The way of a request"). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { SLOT_IDS = STEP_SLOTS_MAX, BOOK_MAX = 512 };

typedef struct {
    uint64_t seed;
    uint32_t choice, n_prompt;
} slot_params_t;

typedef struct {
    char key[CORE_ID_SIZE + 12];
    uint8_t *admit; /* packed, as it was admitted */
    size_t size;
} book_entry_t;

struct sim_leader {
    uint32_t host, ordinal;
    uint64_t epoch, life;
    scheduler_t *scheduler;
    sim_stream_t streams[SIM_STREAMS];
    slot_params_t slots[SLOT_IDS];
    book_entry_t book[BOOK_MAX];
    size_t n_book;
    uint64_t step, done_at_ms;
    bool dead;
};

/* A leader's life is checked through its place in sim->leaders. */
typedef struct {
    size_t place;
    uint64_t life;
    uint64_t step;
    uint32_t n;
    step_drawn_t drawn[STEP_ENTRIES_MAX];
} flight_t;

static sim_leader_t *alive(sim_t *sim, size_t place, uint64_t life)
{
    sim_leader_t *l = sim->leaders[place];
    return l && l->life == life ? l : NULL;
}

static size_t place_of(const sim_t *sim, const sim_leader_t *leader)
{
    size_t i = 0;
    while (sim->leaders[i] != leader)
        i++;
    return i;
}

uint32_t leader_host(const sim_leader_t *l)
{
    return l->host;
}

uint64_t leader_epoch(const sim_leader_t *l)
{
    return l->epoch;
}

uint32_t leader_ordinal(const sim_leader_t *l)
{
    return l->ordinal;
}

/* The newest one of the slot, wherever it is. */
sim_leader_t *leader_of(sim_t *sim, uint32_t ordinal)
{
    sim_leader_t *best = NULL;
    for (size_t i = 0; i < SIM_LEADERS; i++) {
        sim_leader_t *l = sim->leaders[i];
        if (l && l->ordinal == ordinal && (!best || l->life > best->life))
            best = l;
    }
    return best;
}

sim_leader_t *leader_at(sim_t *sim, const char *endpoint)
{
    char name[16];
    sim_leader_t *best = NULL;
    for (size_t i = 0; i < SIM_LEADERS; i++) {
        sim_leader_t *l = sim->leaders[i];
        if (!l)
            continue;
        snprintf(name, sizeof name, "h%u:%u", l->host, l->ordinal);
        if (strcmp(name, endpoint) == 0 && (!best || l->life > best->life))
            best = l;
    }
    return best;
}

/* ---- to the coordinators ---- */

typedef struct {
    uint32_t coordinator;
    uint64_t life, link;
    uint8_t *bytes; /* NULL: the stream broke */
    size_t size;
} parcel_t;

static void free_parcel(void *argument)
{
    parcel_t *p = argument;
    free(p->bytes);
    free(p);
}

static void parcel_arrives(sim_t *sim, void *argument)
{
    parcel_t *p = argument;
    if (coordinator_put_off(sim, p->coordinator, parcel_arrives, p, free_parcel))
        return;
    core_event_t event = {.kind = p->bytes ? CORE_EVENT_LINK_MESSAGE : CORE_EVENT_LINK_BROKEN};
    if (p->bytes) {
        event.link_message.link = p->link;
        event.link_message.bytes = p->bytes;
        event.link_message.size = p->size;
    } else {
        event.link_broken.link = p->link;
        event.link_broken.text = "the stream broke";
    }
    coordinator_event(sim, p->coordinator, p->life, &event);
    free_parcel(p);
}

static void send(sim_t *sim, sim_stream_t *s, const Shoal__Worker__V1__LeaderMessage *m)
{
    parcel_t *p = MEM_NEW(parcel_t);
    p->coordinator = s->coordinator;
    p->life = s->life;
    p->link = s->link;
    if (m) {
        p->size = shoal__worker__v1__leader_message__get_packed_size(m);
        p->bytes = mem_new(p->size + 1, 1);
        shoal__worker__v1__leader_message__pack(m, p->bytes);
    }
    uint64_t at = sim->now_ms + sim_delay(sim);
    s->last_ms = at > s->last_ms ? at : s->last_ms;
    sim_after_with(sim, s->last_ms - sim->now_ms, parcel_arrives, p, free_parcel);
}

static void book_key(char *out, size_t size, const char *session, uint32_t choice)
{
    snprintf(out, size, "%s/%u", session, choice);
}

static Shoal__Worker__V1__Admit *admitted_with(sim_leader_t *l, sim_stream_t *s,
                                               const sequence_output_t *out)
{
    char key[CORE_ID_SIZE + 12];
    book_key(key, sizeof key, out->session, out->choice);
    for (size_t i = 0; i < s->n_attaching; i++) {
        if (strcmp(s->attaching[i], key) != 0)
            continue;
        memcpy(s->attaching[i], s->attaching[--s->n_attaching], sizeof key);
        for (size_t b = 0; b < l->n_book; b++)
            if (strcmp(l->book[b].key, key) == 0)
                return shoal__worker__v1__admit__unpack(NULL, l->book[b].size, l->book[b].admit);
    }
    return NULL;
}

static void flush_stream(sim_t *sim, sim_leader_t *l, sim_stream_t *s)
{
    enum { MAX = 64 };
    static sequence_output_t outs[MAX];
    static Shoal__Worker__V1__SequenceOutput packed[MAX];
    static Shoal__Worker__V1__SequenceEnded ends[MAX];
    static Shoal__V1__Error errors[MAX];
    Shoal__Worker__V1__SequenceOutput *list[MAX];
    size_t n = 0;
    while (n < MAX && scheduler_output(l->scheduler, s->number, &outs[n])) {
        const sequence_output_t *o = &outs[n];
        Shoal__Worker__V1__SequenceOutput *p = &packed[n];
        shoal__worker__v1__sequence_output__init(p);
        p->session = outs[n].session;
        p->choice = o->choice;
        p->owner = o->owner;
        p->first_position = o->first_position;
        p->n_ids = o->n_ids;
        p->ids = outs[n].ids;
        p->admitted = admitted_with(l, s, o);
        if (o->end != END_NONE) {
            shoal__worker__v1__sequence_ended__init(&ends[n]);
            ends[n].reason = (Shoal__Worker__V1__SequenceEnded__Reason)o->end;
            ends[n].finish_reason = (Shoal__V1__FinishReason)o->finish;
            ends[n].prompt_tokens = o->n_prompt;
            if (o->error_code && *o->error_code) {
                shoal__v1__error__init(&errors[n]);
                errors[n].code = (char *)(uintptr_t)o->error_code;
                errors[n].message = outs[n].error;
                ends[n].error = &errors[n];
            }
            p->ended = &ends[n];
        }
        list[n++] = p;
    }
    uint64_t credit = scheduler_credit(l->scheduler, s->number);
    scheduler_load_t load;
    scheduler_load(l->scheduler, &load);
    if (!n && credit == s->credit && load.running + load.waiting == s->busy)
        return;
    s->credit = credit;
    s->busy = load.running + load.waiting;
    Shoal__Worker__V1__Load shown = SHOAL__WORKER__V1__LOAD__INIT;
    shown.running = load.running;
    shown.waiting = load.waiting;
    Shoal__Worker__V1__StepOutput step = SHOAL__WORKER__V1__STEP_OUTPUT__INIT;
    step.step = l->step;
    step.credit_tokens = credit;
    step.load = &shown;
    step.n_sequences = n;
    step.sequences = list;
    Shoal__Worker__V1__LeaderMessage m = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP;
    m.step = &step;
    send(sim, s, &m);
    for (size_t i = 0; i < n; i++)
        if (packed[i].admitted)
            shoal__worker__v1__admit__free_unpacked(packed[i].admitted, NULL);
}

static void flush_all(sim_t *sim, sim_leader_t *l)
{
    for (size_t i = 0; i < SIM_STREAMS; i++)
        if (l->streams[i].used && l->streams[i].open)
            flush_stream(sim, l, &l->streams[i]);
}

/* ---- steps ---- */

static void plan(sim_t *sim, sim_leader_t *l);

static void step_done(sim_t *sim, void *argument)
{
    flight_t *f = argument;
    sim_leader_t *l = alive(sim, f->place, f->life);
    if (l) {
        step_result_t result = {f->step, f->n, f->drawn};
        if (scheduler_step_done(l->scheduler, &result, sim->now_ms) != STATUS_OK)
            sim_violate(sim, "the scheduler refuses its own step: %s", status_text());
        flush_all(sim, l);
        plan(sim, l);
    }
    free(f);
}

/* The rank that computes the poison's prompt dies with everything in the step. */
static bool poisoned(sim_t *sim, sim_leader_t *l, const step_plan_t *p)
{
    bool poison = false;
    for (uint32_t e = 0; e < p->n_entries; e++)
        for (uint32_t k = 0; k < p->entries[e].n_tokens; k++)
            poison = poison || p->entries[e].ids[k] == SIM_ID_POISON;
    if (!poison)
        return false;
    const char *sessions[STEP_ENTRIES_MAX];
    static char names[STEP_ENTRIES_MAX][CORE_ID_SIZE];
    size_t n = 0;
    for (uint32_t e = 0; e < p->n_entries; e++) {
        uint32_t choice;
        const char *session =
            scheduler_session_in_slot(l->scheduler, p->entries[e].slot, &choice);
        if (!session)
            continue;
        snprintf(names[n], CORE_ID_SIZE, "%s", session);
        sessions[n] = names[n];
        n++;
    }
    for (uint32_t j = 0; j < SIM_JOBS; j++)
        sim->expected[j].n_deaths += sim->expected[j].poison;
    /* Sometimes the agent does not know who was in the step. */
    host_rank_failed(sim, l, true, sessions, sim_chance(sim, 700) ? n : 0);
    return true;
}

static void plan(sim_t *sim, sim_leader_t *l)
{
    step_plan_t p;
    while (scheduler_plan(l->scheduler, sim->now_ms, &p)) {
        for (uint32_t i = 0; i < p.n_opens; i++)
            l->slots[p.opens[i].slot] = (slot_params_t){p.opens[i].sampling.seed,
                                                        p.opens[i].choice, p.opens[i].n_prompt};
        if (poisoned(sim, l, &p))
            return; /* the leader is gone */
        flight_t *f = MEM_NEW(flight_t);
        f->place = place_of(sim, l);
        f->life = l->life;
        f->step = l->step = p.step;
        for (uint32_t e = 0; e < p.n_entries; e++) {
            const step_entry_t *entry = &p.entries[e];
            if (!entry->sample)
                continue;
            const slot_params_t *params = &l->slots[entry->slot];
            uint32_t position = entry->position + entry->n_tokens - params->n_prompt;
            f->drawn[f->n].slot = entry->slot;
            f->drawn[f->n++].sampled.id = oracle_id(params->seed, params->choice, position);
        }
        uint64_t at = sim->now_ms + 15 + sim_below(sim, 60);
        l->done_at_ms = at > l->done_at_ms ? at : l->done_at_ms; /* steps come back in order */
        sim_after(sim, l->done_at_ms - sim->now_ms, step_done, f);
    }
}

static void tick(sim_t *sim, void *argument)
{
    flight_t *f = argument;
    sim_leader_t *l = alive(sim, f->place, f->life);
    if (!l) {
        free(f);
        return;
    }
    scheduler_tick(l->scheduler, sim->now_ms);
    flush_all(sim, l);
    plan(sim, l);
    sim_after(sim, 200, tick, f);
}

/* ---- from the coordinators ---- */

static sim_stream_t *find_stream(sim_leader_t *l, uint32_t coordinator, uint64_t life, uint64_t link)
{
    for (size_t i = 0; i < SIM_STREAMS; i++) {
        sim_stream_t *s = &l->streams[i];
        if (s->used && s->coordinator == coordinator && s->life == life && s->link == link)
            return s;
    }
    return NULL;
}

static void on_hello(sim_t *sim, sim_leader_t *l, uint32_t coordinator, uint64_t life,
                     uint64_t link, const Shoal__Worker__V1__Hello *hello)
{
    if (strcmp(hello->text_identity, "toy-identity") != 0)
        sim_violate(sim, "Hello names the text identity \"%s\"", hello->text_identity);
    sim_stream_t *s = NULL;
    for (size_t i = 0; i < SIM_STREAMS && !s; i++)
        if (!l->streams[i].used)
            s = &l->streams[i];
    if (!s)
        return;
    *s = (sim_stream_t){.used = true, .open = true, .coordinator = coordinator, .life = life, .link = link};
    s->number = scheduler_stream_open(l->scheduler, sim->now_ms);
    s->credit = scheduler_credit(l->scheduler, s->number);
    Shoal__Worker__V1__HelloReply reply = SHOAL__WORKER__V1__HELLO_REPLY__INIT;
    char identity[] = "toy-identity";
    reply.epoch = l->epoch;
    reply.text_identity = identity;
    reply.credit_tokens = s->credit;
    reply.context_max = 128;
    Shoal__Worker__V1__LeaderMessage m = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_HELLO;
    m.hello = &reply;
    send(sim, s, &m);
}

static void write_book(sim_leader_t *l, const Shoal__Worker__V1__Admit *a)
{
    char key[CORE_ID_SIZE + 12];
    book_key(key, sizeof key, a->session, a->choice);
    for (size_t i = 0; i < l->n_book; i++)
        if (strcmp(l->book[i].key, key) == 0)
            return;
    if (l->n_book == BOOK_MAX)
        abort();
    book_entry_t *b = &l->book[l->n_book++];
    memcpy(b->key, key, sizeof key);
    b->size = shoal__worker__v1__admit__get_packed_size(a);
    b->admit = mem_new(b->size + 1, 1);
    shoal__worker__v1__admit__pack(a, b->admit);
}

static void on_admit(sim_t *sim, sim_leader_t *l, sim_stream_t *s, const Shoal__Worker__V1__Admit *a)
{
    admission_t in = {
        .choice = a->choice,
        .owner = a->owner,
        .from_n = a->from_n,
        .produced = a->produced,
        .n_produced = (uint32_t)a->n_produced,
        .sampling = sampling_default,
        .stop_ids = a->eos_ids,
        .n_stop_ids = (uint32_t)a->n_eos_ids,
        .priority = a->priority,
        .deadline_ms = a->deadline_ms,
        .tenant = a->tenant,
        .adapter = a->adapter,
        .attach_only = a->attach_only,
        .solo = a->solo,
        .logits_from = LOGITS_NONE,
    };
    snprintf(in.session, sizeof in.session, "%s", a->session);
    if (a->n_prompt) {
        in.prompt = a->prompt[0]->tokens->ids;
        in.n_prompt = (uint32_t)a->prompt[0]->tokens->n_ids;
    }
    if (a->sampling) {
        in.sampling.seed = a->sampling->seed;
        in.max_tokens = a->sampling->max_tokens;
        write_book(l, a);
    }
    if (a->attach_only && s->n_attaching < 16)
        book_key(s->attaching[s->n_attaching++], sizeof s->attaching[0], a->session, a->choice);
    scheduler_admit(l->scheduler, s->number, &in, sim->now_ms);
}

void leader_message(sim_t *sim, const char *endpoint, uint32_t coordinator, uint64_t life,
                    uint64_t link, const uint8_t *bytes, size_t size)
{
    sim_leader_t *l = leader_at(sim, endpoint);
    sim_stream_t *s = l ? find_stream(l, coordinator, life, link) : NULL;
    Shoal__Worker__V1__CoordinatorMessage *m =
        shoal__worker__v1__coordinator_message__unpack(NULL, size, bytes);
    if (!m) {
        sim_violate(sim, "a message that is no CoordinatorMessage");
        return;
    }
    if (l && m->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_HELLO) {
        on_hello(sim, l, coordinator, life, link, m->hello);
    } else if (!s) {
        sim_stream_t nobody = {.coordinator = coordinator, .life = life, .link = link};
        send(sim, &nobody, NULL); /* refused: nobody listens, or on another stream */
    } else {
        if (m->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT)
            on_admit(sim, l, s, m->admit);
        else
            scheduler_cancel(l->scheduler, m->cancel->session, m->cancel->choice, m->cancel->owner,
                             sim->now_ms);
        flush_all(sim, l);
        plan(sim, l);
    }
    shoal__worker__v1__coordinator_message__free_unpacked(m, NULL);
}

void leader_stream_broken(sim_t *sim, uint32_t coordinator, uint64_t life, uint64_t link)
{
    for (size_t i = 0; i < SIM_LEADERS; i++) {
        sim_leader_t *l = sim->leaders[i];
        sim_stream_t *s = l ? find_stream(l, coordinator, life, link) : NULL;
        if (!s)
            continue;
        scheduler_stream_close(l->scheduler, s->number, sim->now_ms);
        s->used = false;
    }
}

/* ---- life ---- */

sim_leader_t *leader_make(sim_t *sim, uint32_t host, uint32_t ordinal, uint64_t epoch,
                          uint32_t stages)
{
    size_t place = 0;
    while (place < SIM_LEADERS && sim->leaders[place])
        place++;
    if (place == SIM_LEADERS)
        abort();
    sim_leader_t *l = sim->leaders[place] = MEM_NEW(sim_leader_t);
    l->host = host;
    l->ordinal = ordinal;
    l->epoch = epoch;
    l->life = ++sim->next_life;
    scheduler_config_t config = {
        .n_blocks = 64,
        .vocab = SIM_VOCAB,
        .context_max = 128,
        .stages = stages,
        .keep_prefixes = true,
        .text_identity = "toy-identity",
    };
    if (scheduler_new(&config, &l->scheduler) != STATUS_OK)
        abort();
    flight_t *f = MEM_NEW(flight_t);
    f->place = place;
    f->life = l->life;
    sim_after(sim, 200, tick, f);
    return l;
}

static void destroy(sim_leader_t *l)
{
    scheduler_free(l->scheduler);
    for (size_t i = 0; i < l->n_book; i++)
        free(l->book[i].admit);
    free(l);
}

void leader_kill(sim_t *sim, sim_leader_t *l)
{
    for (size_t i = 0; i < SIM_STREAMS; i++)
        if (l->streams[i].used)
            send(sim, &l->streams[i], NULL);
    sim->leaders[place_of(sim, l)] = NULL;
    destroy(l);
}

void leaders_free(sim_t *sim)
{
    for (size_t i = 0; i < SIM_LEADERS; i++)
        if (sim->leaders[i])
            destroy(sim->leaders[i]);
}

void leader_dump(sim_t *sim, const sim_leader_t *l)
{
    scheduler_load_t load;
    scheduler_load(l->scheduler, &load);
    sim_trace(sim, "leader of %u on h%u, epoch %llu: running %u waiting %u free %llu in flight %u",
              l->ordinal, l->host, (unsigned long long)l->epoch, load.running, load.waiting,
              (unsigned long long)load.kv_tokens_free, scheduler_in_flight(l->scheduler));
}
