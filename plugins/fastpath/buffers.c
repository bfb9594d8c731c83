/* Bounds what nbdkit keeps in memory for each thread of each connection.
 *
 * nbdkit takes the data of a read or a write through a buffer of the thread's. The buffer becomes as
 * large as the largest request that the thread was sent, up to 64 MiB, and stays until the
 * connection ends. nbdkit makes it when it has a request's header: before a filter or a plugin hears
 * of the request, and before its data come, which may never come. Nothing of nbdkit's says how large
 * it may become. But nbdkit bears that it cannot be had: the client gets ENOMEM, what it sends of
 * that request is read and dropped, and the connection goes on.
 *
 * So this library stands before the C library's realloc, and refuses nbdkit's own program, and
 * nobody else in the process, a piece of memory larger than the daemon has told clients to ask for.
 * The daemon preloads it (thinpoold/buffers.py); loaded in any other way it does nothing.
 *
 * Invariants
 *
 * 1. What is refused to nbdkit's program is as if there were no memory: what it had stays valid.
 * 2. Everybody else gets what the next realloc gives.
 *
 * Thread-safety: any thread. What is set is set before there are others. */

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>

#define EXPORT __attribute__ ((visibility ("default")))

EXPORT void *realloc (void *old, size_t size);
EXPORT size_t buffers_limit (void);

typedef void *resize (void *, size_t);

static _Atomic (resize *) next_realloc;
/* The most bytes of one piece for nbdkit's program, and where that is in memory. */
static size_t most = SIZE_MAX;
static void *program;

static void *
base_of (const void *address)
{
  Dl_info found;

  return dladdr (address, &found) != 0 ? found.dli_fbase : NULL;
}

static resize *
find_next (void)
{
  resize *found = NULL;

  /* As POSIX has it: a function's address comes as that of an object. */
  *(void **) &found = dlsym (RTLD_NEXT, "realloc");
  atomic_store (&next_realloc, found);
  return found;
}

__attribute__ ((constructor)) static void
begin (void)
{
  const char *text = getenv ("THINPOOLD_LARGEST_REQUEST");

  /* An address of the program's own, whatever it is called. */
  program = base_of ((const void *) (uintptr_t) getauxval (AT_ENTRY));
  if (text != NULL && program != NULL)
    most = strtoul (text, NULL, 10);
}

void *
realloc (void *old, size_t size)
{
  resize *next = atomic_load_explicit (&next_realloc, memory_order_relaxed);

  if (size > most && base_of (__builtin_return_address (0)) == program) {
    errno = ENOMEM;
    return NULL;
  }
  if (next == NULL)
    next = find_next ();
  return next (old, size);
}

/* The largest piece that nbdkit's program gets, 0 for any: where another library stands before this
 * one, a sanitizer's say, this one has nothing to say. */
size_t
buffers_limit (void)
{
  void *first = dlsym (RTLD_DEFAULT, "realloc");

  return most != SIZE_MAX && base_of (first) == base_of (&most) ? most : 0;
}
