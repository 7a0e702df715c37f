/* The first process of a machine that has nothing else: tries calls under each filter, says what came of it.
 *
 * A line for each: the filter, the try, and 0, the error number, or "killed". The filters are files in the root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define TRY(name, expression) static long name(void) { return (expression); }

static void *nothing(void *given) { return given; }

static long in_thread(void)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, nothing, NULL);

	errno = error;
	return error ? -1 : pthread_join(thread, NULL);
}

static long in_process(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	return child < 0 ? -1 : 0;
}

static long mapped(int access)
{
	return mmap(NULL, 4096, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

static long made_executable(void)
{
	static char page[8192];

	return mprotect((void *)(((unsigned long)page + 4095) & ~4095UL), 4096, PROT_READ | PROT_EXEC);
}

static long remapped(int flags)
{
	char *pages = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mremap(pages, 4096, 4096, flags, pages + 4096) == MAP_FAILED ? -1 : 0;
}

static struct rlimit limit;

TRY(ask_pid, syscall(SYS_getpid) > 0 ? 0 : -1)
TRY(open_file, open("/init", O_RDONLY) < 0 ? -1 : 0)
TRY(make_memory, memfd_create("x", 0) < 0 ? -1 : 0)
TRY(map_memory, mapped(PROT_READ | PROT_WRITE))
TRY(map_code, mapped(PROT_READ | PROT_EXEC))
TRY(grow_memory, remapped(MREMAP_MAYMOVE))
TRY(move_memory, remapped(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP))
TRY(move_and_leave_a_hole, remapped(MREMAP_MAYMOVE | MREMAP_FIXED))
TRY(lower_itself, setpriority(PRIO_PROCESS, 0, 5))
TRY(lower_another, setpriority(PRIO_PROCESS, 1, 5))
TRY(lower_its_user, setpriority(PRIO_USER, 0, 5))
TRY(ask_own_limit, prlimit(0, RLIMIT_CORE, NULL, &limit))
TRY(ask_anothers_limit, prlimit(1, RLIMIT_CORE, NULL, &limit))
TRY(signal_another, kill(1, 0))
TRY(run_program, execl("/missing", "missing", NULL))
TRY(open_socket, socket(AF_INET, SOCK_STREAM, 0) < 0 && errno != EAFNOSUPPORT ? -1 : 0)
TRY(debug, ptrace(PTRACE_TRACEME, 0, 0, 0))
TRY(change_user, setuid(1))

static const struct { const char *name; long (*act)(void); } tries[] = {
	{ "ask_pid", ask_pid }, { "open_file", open_file }, { "make_memory", make_memory },
	{ "map_memory", map_memory }, { "map_code", map_code }, { "make_code", made_executable },
	{ "grow_memory", grow_memory }, { "move_memory", move_memory },
	{ "move_and_leave_a_hole", move_and_leave_a_hole },
	{ "thread", in_thread }, { "process", in_process }, { "lower_itself", lower_itself },
	{ "lower_another", lower_another }, { "lower_its_user", lower_its_user },
	{ "ask_own_limit", ask_own_limit }, { "ask_anothers_limit", ask_anothers_limit },
	{ "signal_another", signal_another }, { "run_program", run_program },
	{ "open_socket", open_socket }, { "debug", debug }, { "change_user", change_user },
};

static int filtered_by(const char *name)
{
	static struct sock_filter steps[2048];
	char path[64];
	long size;
	int file;

	snprintf(path, sizeof(path), "/%s", name);
	file = open(path, O_RDONLY);
	if (file < 0)
		return 0; /* no such filter: the control */
	size = read(file, steps, sizeof(steps));
	struct sock_fprog program = { size / sizeof(*steps), steps };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

int main(void)
{
	static const char *const filters[] = { "none", "serving", "holding", "rendering" };

	for (unsigned f = 0; f < sizeof(filters) / sizeof(*filters); f++)
		for (unsigned t = 0; t < sizeof(tries) / sizeof(*tries); t++) {
			int status;
			pid_t child = fork();

			if (child == 0) {
				if (filtered_by(filters[f]))
					_exit(255);
				_exit(tries[t].act() == 0 ? 0 : errno);
			}
			waitpid(child, &status, 0);
			if (WIFSIGNALED(status))
				printf("TRIED %s %s killed %d\n", filters[f], tries[t].name, WTERMSIG(status));
			else
				printf("TRIED %s %s %d\n", filters[f], tries[t].name, WEXITSTATUS(status));
			fflush(stdout);
		}
	reboot(RB_POWER_OFF);
	return 0;
}
