/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs that reach for any physical page of the machine, mapped into them by the attack module.
 *
 * touch PHYSICAL HOW: maps it and reads, writes or executes it (a return instruction should be there),
 * or has the kernel do it: send (write() from the page), receive (read() into it), copy (the module
 * copies it to the program).
 * trace PHYSICAL HOW: another process maps it, and is read as debuggers do: peek, mem (/proc/PID/mem),
 * vm (process_vm_readv), or written: poke.
 *
 * "signal" or "errno" say what stopped it, "value" what came when nothing did. A kernel that faults for
 * a program kills it, and then there is no such answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

#define MARK 0x6b6361747461UL

static sigjmp_buf faulted;

static void on_fault(int signal)
{
	siglongjmp(faulted, signal);
}

static void *map(int module, unsigned long physical)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, module, physical);
}

static int failed(long done)
{
	return done == sizeof(uint64_t) ? 0 : errno;
}

/* A word of ours through a pipe into the page. */
static int receive(void *page, const int *pipes)
{
	uint64_t word = MARK;

	return failed(write(pipes[1], &word, sizeof(word))) ?: failed(read(pipes[0], page, sizeof(word)));
}

int touch_main(int argc, char **argv)
{
	unsigned long physical = number(argc > 1 ? argv[1] : NULL, 0);
	const char *how = argc > 2 ? argv[2] : "read";
	int module = open("/dev/flexattack", O_RDWR | O_CLOEXEC), pipes[2], error = 0;
	volatile uint64_t *page;
	uint64_t value = 0;

	if (module < 0 || pipe(pipes))
		return 1;
	page = map(module, physical);
	if (page == MAP_FAILED) {
		printf("{\"signal\": 0, \"errno\": %d, \"value\": 0, \"mapped\": 0}\n", errno);
		return 0;
	}
	signal(SIGBUS, on_fault);
	signal(SIGSEGV, on_fault);
	signal(SIGILL, on_fault);
	int caught = sigsetjmp(faulted, 1);
	if (caught)
		error = 0;
	else if (!strcmp(how, "write"))
		*page = MARK;
	else if (!strcmp(how, "execute"))
		((void (*)(void))page)();
	else if (!strcmp(how, "send"))
		error = failed(write(pipes[1], (void *)page, sizeof(value)));
	else if (!strcmp(how, "receive"))
		error = receive((void *)page, pipes);
	else if (!strcmp(how, "copy"))
		error = failed(pread(module, &value, sizeof(value), physical));
	else
		value = *page;
	printf("{\"signal\": %d, \"errno\": %d, \"value\": %lu, \"mapped\": 1}\n", caught, error, value);
	return 0;
}

/* ---- from another process ---- */

/* A process that has the page mapped and waits to be looked at; -1 when there cannot be one. */
static pid_t start_holder(int module, unsigned long physical, void **page)
{
	*page = map(module, physical);
	if (*page == MAP_FAILED)
		return -1;
	pid_t holder = fork(); /* which has it at the same address */
	if (!holder) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	munmap(*page, PAGE);
	return holder;
}

static int look(pid_t holder, void *page, const char *how, uint64_t *value)
{
	struct iovec here = { value, sizeof(*value) }, there = { page, sizeof(*value) };
	char path[64];

	errno = 0;
	if (!strcmp(how, "vm"))
		return failed(process_vm_readv(holder, &here, 1, &there, 1, 0));
	if (!strcmp(how, "mem")) {
		snprintf(path, sizeof(path), "/proc/%d/mem", holder);
		int mem = open(path, O_RDWR | O_CLOEXEC);
		return mem < 0 ? errno : failed(pread(mem, value, sizeof(*value), (uintptr_t)page));
	}
	if (ptrace(PTRACE_ATTACH, holder, NULL, NULL) || waitpid(holder, NULL, 0) != holder)
		return errno;
	if (!strcmp(how, "poke"))
		return ptrace(PTRACE_POKEDATA, holder, page, (void *)MARK) ? errno : 0;
	errno = 0;
	*value = ptrace(PTRACE_PEEKDATA, holder, page, NULL);
	return errno;
}

int trace_main(int argc, char **argv)
{
	int module = open("/dev/flexattack", O_RDWR | O_CLOEXEC);
	uint64_t value = 0;
	void *page;

	if (module < 0 || argc < 3)
		return 1;
	pid_t holder = start_holder(module, number(argv[1], 0), &page);
	if (holder < 0)
		return 1;
	int error = look(holder, page, argv[2], &value);
	kill(holder, SIGKILL);
	printf("{\"signal\": 0, \"errno\": %d, \"value\": %lu, \"mapped\": 1}\n", error, value);
	return 0;
}
