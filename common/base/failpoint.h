/* Named places where a test can make this process die, stall or fail. SHOAL_FAILPOINTS is a list
 * "name=action[@hit];…": actions are `kill` (SIGKILL to itself), `kill:PID` (SIGKILL to that
 * process, such as a store that this one speaks to at this point), `abort`, `stop` (SIGSTOP),
 * `stall:MS`, `error`. `@hit` is the 1-based passing at which it acts (default 1; it acts once; `*`
 * always). "name%PID=…" acts only in the process with that id. The variable also accepts
 * "file:PATH": the list is read again from that file each time a point is passed, and passings
 * count from when the entry was first seen, so a test can arm a point in a running process. With
 * the variable unset a point costs one load and one branch. */
#ifndef SHOAL_COMMON_BASE_FAILPOINT_H
#define SHOAL_COMMON_BASE_FAILPOINT_H

#include <stdbool.h>

extern bool failpoint_armed;

/* Reads SHOAL_FAILPOINTS; call once at start. */
void failpoint_start(void);

/* Acts if the point is armed; returns true when the caller shall fail with an error of its own. */
bool failpoint_pass(const char *name);

#define FAILPOINT(name) (__builtin_expect(failpoint_armed, 0) && failpoint_pass(name))

#endif
