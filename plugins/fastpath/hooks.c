/* Holds up a test build where a test wants it, without any clock.
 *
 * The test names a directory in FASTPATH_TEST_HOOKS with two FIFOs, "reached" and "go", which it
 * keeps open, and arms one request by making the file "armed-r" or "armed-w" there. The next such
 * request that has looked its block up removes the file, writes its letter to "reached", and waits
 * for a byte from "go". A closer that is about to wait for requests writes its letter and goes on.
 *
 * Thread-safety: any thread; a file is removed by one alone. */

#include "hooks.h"

#ifdef FASTPATH_TEST_HOOKS

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int
open_fifo (const char *directory, const char *name, int flags)
{
  char path[4096];

  snprintf (path, sizeof path, "%s/%s", directory, name);
  return open (path, flags | O_CLOEXEC);
}

static void
tell (const char *directory, char point)
{
  int reached = open_fifo (directory, "reached", O_WRONLY | O_NONBLOCK);

  if (reached < 0 || write (reached, &point, 1) != 1)
    abort ();
  close (reached);
}

static void
hold (const char *directory)
{
  int go = open_fifo (directory, "go", O_RDONLY);
  char byte;

  if (go < 0 || read (go, &byte, 1) != 1)
    abort ();
  close (go);
}

void
hook (char point)
{
  const char *directory = getenv ("FASTPATH_TEST_HOOKS");
  char path[4096];

  if (directory == NULL)
    return;
  if (point == HOOK_CLOSER_WAITS) {
    tell (directory, point);
    return;
  }
  snprintf (path, sizeof path, "%s/armed-%c", directory, point);
  if (unlink (path) == 0) {
    tell (directory, point);
    hold (directory);
  }
}

#else
typedef int nothing_in_this_build; /* ISO C wants a declaration in every file. */
#endif
