/*
 * Preloaded into User-Mode Linux, so that it also runs on processors whose registers take more than the 2.7 KiB that
 * it knows of, such as those with AMX: it sets the extended registers (XSAVE) of its processes in that length, and Linux
 * refuses any length but the host's own. What is missing there is in its initial state, so zeros will do. Linux takes no
 * more of a longer buffer than it needs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	static char area[65536];
	struct iovec whole = {area, sizeof area};
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
		const struct iovec *known = data;
		if (known->iov_len > sizeof area)
			abort();
		memcpy(area, known->iov_base, known->iov_len);
		data = &whole;
	}
	return next(request, pid, address, data);
}
