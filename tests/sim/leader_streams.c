/* The Engine service of a simulated leader: Hello, Admit, Cancel in, StepOutput out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/leader_state.h"

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

void leader_send(sim_t *sim, sim_stream_t *s, const Shoal__Worker__V1__LeaderMessage *m)
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
    leader_send(sim, s, &m);
    for (size_t i = 0; i < n; i++)
        if (packed[i].admitted)
            shoal__worker__v1__admit__free_unpacked(packed[i].admitted, NULL);
}

void leader_flush(sim_t *sim, sim_leader_t *l)
{
    for (size_t i = 0; i < SIM_STREAMS; i++)
        if (l->streams[i].used && l->streams[i].open)
            flush_stream(sim, l, &l->streams[i]);
}

/* ---- from the coordinators ---- */

static sim_stream_t *find_stream(sim_leader_t *l, uint32_t coordinator, uint64_t life,
                                 uint64_t link)
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
    *s = (sim_stream_t){
        .used = true, .open = true, .coordinator = coordinator, .life = life, .link = link};
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
    leader_send(sim, s, &m);
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

static void on_admit(sim_t *sim, sim_leader_t *l, sim_stream_t *s,
                     const Shoal__Worker__V1__Admit *a)
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
        leader_send(sim, &nobody, NULL); /* refused: nobody listens, or on another stream */
    } else {
        if (m->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT)
            on_admit(sim, l, s, m->admit);
        else
            scheduler_cancel(l->scheduler, m->cancel->session, m->cancel->choice, m->cancel->owner,
                             sim->now_ms);
        leader_flush(sim, l);
        leader_plan(sim, l);
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
