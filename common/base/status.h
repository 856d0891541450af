/* One result type for the whole program. 0 is good; every other value says whose loss it is, which
 * decides what happens next: a request's loss is answered to its client, a peer's is retried
 * elsewhere, a replica's re-forms it, a process's ends the process (only main.c calls exit).
 *
 * Whoever detects a failure words it once, with fail(): what happened, to which object, and what
 * would be right. Callers pass the status on; status_text() holds the words of the calling thread's
 * last failure until the next fail() on that thread. Code that hands a failure to another thread
 * copies the text with it. */
#ifndef SHOAL_COMMON_BASE_STATUS_H
#define SHOAL_COMMON_BASE_STATUS_H

#include <stdbool.h>

typedef enum {
    STATUS_OK = 0,
    /* The request's loss: answered to who asked, never retried unchanged. */
    STATUS_INVALID = 1,     /* an argument, file or message is malformed */
    STATUS_NOT_FOUND = 2,   /* no such object */
    STATUS_REFUSED = 3,     /* well formed, but the state does not allow it */
    STATUS_CONFLICT = 4,    /* exists with other content, or lost a compare-and-set */
    STATUS_EXHAUSTED = 5,   /* a limit is reached; right again later */
    STATUS_CANCELLED = 6,
    STATUS_DEADLINE = 7,
    STATUS_STALE = 8,       /* fenced: a newer owner, epoch or attempt exists */
    STATUS_POISONED = 9,    /* the sequence crashes ranks */
    STATUS_UNSUPPORTED = 10,
    /* The peer's loss: try another peer, or the same later. */
    STATUS_UNREACHABLE = 20,
    STATUS_PEER_LOST = 21,
    STATUS_TIMEOUT = 22,
    /* The replica's loss: it forms anew. */
    STATUS_ABORTED = 30,
    STATUS_REPLICA_LOST = 31,
    STATUS_NUMERIC = 32,    /* NaN, Inf or out of range inside a step */
    /* The process's loss. */
    STATUS_NO_MEMORY = 40,
    STATUS_IO = 41,
    STATUS_INTERNAL = 42,
} status_t;

#define MUST_USE __attribute__((warn_unused_result))

/* Bytes of the longest failure text, its NUL included; longer ones are cut. */
#define STATUS_TEXT_MAX 512

/* Records the words of a failure for this thread and returns `code`, which must not be STATUS_OK. */
status_t (fail)(status_t code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Puts "prefix: " before this thread's failure text and returns `code`. */
status_t (fail_in)(status_t code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* fail() never returns STATUS_OK; saying so here lets the compiler see that outputs are set whenever
 * a TRY goes on. */
#define FAIL_IS_NO_SUCCESS(call)                                                                   \
    __extension__({                                                                                \
        status_t fail_status_ = (call);                                                            \
        if (fail_status_ == STATUS_OK)                                                             \
            __builtin_unreachable();                                                               \
        fail_status_;                                                                              \
    })
#ifndef fail /* cmocka has a macro of that name, which a test keeps */
#define fail(...) FAIL_IS_NO_SUCCESS((fail)(__VA_ARGS__))
#endif
#define fail_in(...) FAIL_IS_NO_SUCCESS((fail_in)(__VA_ARGS__))

/* The words of this thread's last failure; "" when there was none. */
const char *status_text(void);

/* "INVALID", "NOT_FOUND", …; never NULL. */
const char *status_name(status_t code);

/* The program exit code that the command line promises: 0 ok, 1 failed, 2 usage, 3 not found,
 * 4 refused, 5 conflict, 6 unreachable, 7 timed out. */
int status_exit_code(status_t code);

/* Passes a failure on to the caller. */
#define TRY(expression)                                                                            \
    do {                                                                                           \
        status_t try_status_ = (expression);                                                       \
        if (try_status_ != STATUS_OK)                                                              \
            return try_status_;                                                                    \
    } while (0)

/* An assertion about our own code. It stays on in release builds. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            check_failed(__FILE__, __LINE__, #condition);                                          \
    } while (0)
void check_failed(const char *file, int line, const char *condition)
    __attribute__((noreturn, cold));

#endif
