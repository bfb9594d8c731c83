/* The nbdkit filter: what nbdkit calls, and what Python calls in the same library.
 *
 * A connection's handle is the volume that Python has offered while it was opened. Requests that the
 * volume cannot do go to Python, and so does every kind of request but reading and writing.
 *
 * A connection is opened and closed from the plugin outwards and inwards: Python's open() comes
 * before this filter's is done, and the filter's close() before Python's. So a volume that Python
 * has closed for its last client has no connection here.
 *
 * Thread-safety: nbdkit calls the connections' functions from any thread, and closes a connection
 * when all its requests are over. */

#include <stddef.h>
#include <stdint.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include "volume.h"

/* What follows is Python's; it goes up whenever one of those functions changes. */
#define INTERFACE "1"

#define EXPORT __attribute__ ((visibility ("default")))

/* Read from the file, by those who are to decide whether it may be loaded. */
EXPORT extern const char fastpath_built_for[];
EXPORT const char fastpath_built_for[] =
    "thinpoold-fastpath interface=" INTERFACE " nbdkit=" NBDKIT_VERSION_STRING ";";

/* ---- Python's side ---------------------------------------------------------------------------- */

EXPORT struct volume *fastpath_new (void);
EXPORT void fastpath_free (struct volume *volume);
EXPORT void fastpath_close (struct volume *volume);
EXPORT void fastpath_open (struct volume *volume);
EXPORT void fastpath_show (struct volume *volume, const table_entry *table, uint64_t blocks,
                           uint64_t block_size, uint64_t size, int fd, int writable,
                           _Atomic int64_t *credit);
EXPORT void fastpath_offer (struct volume *volume);
EXPORT void fastpath_store (table_entry *entries, size_t count, uint64_t value, uint64_t step);
EXPORT unsigned fastpath_count (void);
EXPORT int fastpath_read (struct volume *volume, void *buffer, uint32_t count, uint64_t offset);
EXPORT int fastpath_write (struct volume *volume, const void *buffer, uint32_t count,
                           uint64_t offset);

/* What Python's open() on this thread has offered to the filter's, which called it. */
static _Thread_local struct volume *offered;

/* Where Python has offered none. It is closed for ever, and has a user for ever. */
static struct volume none = { .gate.closers = 1, .users = 1 };

struct volume *
fastpath_new (void)
{
  return volume_new ();
}

void
fastpath_free (struct volume *volume)
{
  volume_unref (volume);
}

void
fastpath_close (struct volume *volume)
{
  gate_close (&volume->gate);
}

void
fastpath_open (struct volume *volume)
{
  gate_open (&volume->gate);
}

void
fastpath_show (struct volume *volume, const table_entry *table, uint64_t blocks,
               uint64_t block_size, uint64_t size, int fd, int writable, _Atomic int64_t *credit)
{
  volume_show (volume, table, blocks, block_size, size, fd, writable != 0, credit);
}

void
fastpath_offer (struct volume *volume)
{
  offered = volume;
}

void
fastpath_store (table_entry *entries, size_t count, uint64_t value, uint64_t step)
{
  table_store (entries, count, value, step);
}

unsigned
fastpath_count (void)
{
  return volume_count ();
}

/* As a request comes; for tests without nbdkit. */

int
fastpath_read (struct volume *volume, void *buffer, uint32_t count, uint64_t offset)
{
  return volume_read (volume, buffer, count, offset);
}

int
fastpath_write (struct volume *volume, const void *buffer, uint32_t count, uint64_t offset)
{
  return volume_write (volume, buffer, count, offset);
}

/* ---- nbdkit's side ---------------------------------------------------------------------------- */

static void *
filter_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname,
             int is_tls)
{
  struct volume *volume;

  (void) is_tls;
  offered = NULL;
  if (next (context, readonly, exportname) == -1)
    return NULL;
  volume = offered != NULL ? offered : &none;
  offered = NULL;
  /* Python's connection has kept it until here. */
  volume_ref (volume);
  return volume;
}

static void
filter_close (void *handle)
{
  volume_unref (handle);
}

static int
filter_prepare (nbdkit_next *next, void *handle, int readonly)
{
  (void) handle;
  (void) readonly;
  /* nbdkit wants to have been asked this before a filter flushes. */
  return next->can_flush (next) == -1 ? -1 : 0;
}

static int
filter_pread (nbdkit_next *next, void *handle, void *buffer, uint32_t count, uint64_t offset,
              uint32_t flags, int *err)
{
  if (volume_read (handle, buffer, count, offset))
    return 0;
  return next->pread (next, buffer, count, offset, flags, err);
}

static int
filter_pwrite (nbdkit_next *next, void *handle, const void *buffer, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  if (volume_write (handle, buffer, count, offset))
    return flags & NBDKIT_FLAG_FUA ? next->flush (next, 0, err) : 0;
  return next->pwrite (next, buffer, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name = "thinpoold",
  .longname = "thinpoold's fast path",
  .description = "Reads and writes mapped blocks of thin volumes without Python.",
  .open = filter_open,
  .close = filter_close,
  .prepare = filter_prepare,
  .pread = filter_pread,
  .pwrite = filter_pwrite,
};

NBDKIT_REGISTER_FILTER (filter)
