/* `shoal-worker agent`: offers this host's cores, memory and models to a cluster, and runs the ranks
 * that are assigned to it. What it decides is in agent_core.h; this is the shell that does it. */
#ifndef SHOAL_WORKER_AGENT_H
#define SHOAL_WORKER_AGENT_H

/* The whole life of an agent. Returns the program's exit code. */
int agent_main(int argc, char **argv);

#endif
