/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's programs, all in one file: init, the agent that the host talks to, and the workloads
 * that make the machine's memory a contested place. Which one runs is the first argument.
 *
 * A program says what came of it in one JSON object on its standard output, and its exit status is
 * 0 when it did what it should.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

/* programs */
int init_main(void);
int agent_main(void);
int hog_main(int argc, char **argv);
int churn_main(int argc, char **argv);
int memory_main(int argc, char **argv);
int syscalls_main(int argc, char **argv);
int btree_main(int argc, char **argv);
int touch_main(int argc, char **argv);
int npu_main(int argc, char **argv);
int disk_main(int argc, char **argv);
int trace_main(int argc, char **argv);
int application_main(int argc, char **argv);

/* small.c: small files, whole. Both return -1 with errno. */
long read_whole(const char *path, char *text, size_t room); /* bytes; always ends text with 0 */
int write_whole(const char *path, const char *text);

/* A line of /proc/meminfo in bytes, 0 when there is none */
uint64_t meminfo(const char *name);

/* modules.c */
int load_module(const char *name, const char *parameters);
int unload_module(const char *name);


unsigned long number(const char *word, unsigned long otherwise); /* decimal or 0x…; otherwise when NULL */
double now(void);                                                /* seconds of a monotonic clock */
uint64_t mixed(uint64_t value);                                  /* a number that looks random */

#endif
