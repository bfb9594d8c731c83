/* Calls the filter's functions as nbdkit does, with a plugin that notes what reaches it.
 *
 * Ends by abort() where the filter does something else than it should. */

#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include "volume.h"

extern struct nbdkit_filter *filter_init (void);
extern void fastpath_offer (struct volume *volume);

#define BLOCK 4096
#define FOLIO (128 << 10)

/* In the C library's place: what the filter writes, and in how many calls. */
static unsigned writes;

ssize_t
pwrite (int fd, const void *buffer, size_t count, off_t offset)
{
  assert (count != 0 && offset / FOLIO == (offset + (off_t) count - 1) / FOLIO);
  writes++;
  return syscall (SYS_pwrite64, fd, buffer, count, offset);
}

/* What the plugin was asked for, a letter each; and what it answers. */
static char asked[16];
static struct volume *to_offer;
static int answer;
static uint32_t flags_seen;

static void
note (char letter)
{
  const size_t length = strlen (asked);

  assert (length + 1 < sizeof asked);
  asked[length] = letter;
}

static bool
was_asked (const char *wanted)
{
  const bool same = strcmp (asked, wanted) == 0;

  memset (asked, 0, sizeof asked);
  return same;
}

static int
plugin_open (nbdkit_context *context, int readonly, const char *exportname)
{
  (void) context;
  (void) readonly;
  (void) exportname;
  note ('o');
  if (to_offer != NULL)
    fastpath_offer (to_offer);
  return answer;
}

static int
plugin_can_flush (nbdkit_next *next)
{
  (void) next;
  note ('c');
  return answer;
}

static int
plugin_pread (nbdkit_next *next, void *buffer, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  (void) next;
  (void) offset;
  memset (buffer, 'P', count);
  note ('r');
  flags_seen = flags;
  *err = EIO;
  return answer;
}

static int
plugin_pwrite (nbdkit_next *next, const void *buffer, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  (void) next;
  (void) buffer;
  (void) count;
  (void) offset;
  note ('w');
  flags_seen = flags;
  *err = ENOSPC;
  return answer;
}

static int
plugin_flush (nbdkit_next *next, uint32_t flags, int *err)
{
  (void) next;
  note ('f');
  flags_seen = flags;
  *err = EIO;
  return answer;
}

static struct nbdkit_next_ops next = {
  .can_flush = plugin_can_flush,
  .pread = plugin_pread,
  .pwrite = plugin_pwrite,
  .flush = plugin_flush,
};

/* What is written in one request makes no large folios, and is all there. */
static void
write_much (void)
{
  enum { BLOCKS = 100, FIRST = 16 };
  static char data[BLOCKS * BLOCK], buffer[sizeof data];
  static table_entry table[BLOCKS];
  struct volume *volume = volume_new ();
  const int device = memfd_create ("device", MFD_CLOEXEC);

  assert (device >= 0 && ftruncate (device, (FIRST + BLOCKS) * BLOCK) == 0 && volume != NULL);
  for (size_t n = 0; n < sizeof data; n++)
    data[n] = (char) (n % 251);
  table_store (table, BLOCKS, FIRST << ENTRY_SHIFT | ENTRY_IN_PLACE, ENTRY_STEP);
  volume_show (volume, table, BLOCKS, BLOCK, sizeof data, device, true, NULL);
  gate_open (&volume->gate);
  writes = 0;
  assert (volume_write (volume, data, sizeof data, 0));
  /* From 64 to 464 KiB. */
  assert (writes == 4);
  assert (pread (device, buffer, sizeof buffer, FIRST * BLOCK) == (ssize_t) sizeof buffer);
  assert (memcmp (buffer, data, sizeof data) == 0);
  volume_unref (volume);
  close (device);
}

int
main (void)
{
  struct nbdkit_filter *filter = filter_init ();
  struct volume *volume = volume_new ();
  table_entry table[2];
  char data[BLOCK], buffer[BLOCK];
  int device = memfd_create ("device", MFD_CLOEXEC), err = 0;
  void *handle;

  assert (device >= 0 && ftruncate (device, 2 * BLOCK) == 0 && volume != NULL);
  memset (data, 'd', sizeof data);
  table_store (table, 1, ENTRY_IN_PLACE, 0);
  table_store (table + 1, 1, 0, 0);
  volume_show (volume, table, 2, BLOCK, 2 * BLOCK, device, true, NULL);
  gate_open (&volume->gate);

  /* A plugin that offers nothing gets everything. */
  handle = filter->open (plugin_open, NULL, 0, "v", 0);
  assert (handle != NULL && was_asked ("o"));
  assert (filter->pread (&next, handle, buffer, 512, 0, 0, &err) == 0 && was_asked ("r"));
  assert (filter->pwrite (&next, handle, data, 512, 0, 0, &err) == 0 && was_asked ("w"));
  filter->close (handle);

  /* One that cannot open, though it has offered, leaves nothing behind. */
  to_offer = volume;
  answer = -1;
  assert (filter->open (plugin_open, NULL, 0, "v", 0) == NULL && was_asked ("o"));
  to_offer = NULL;
  answer = 0;
  handle = filter->open (plugin_open, NULL, 0, "v", 0);
  assert (handle != NULL && was_asked ("o"));
  assert (filter->pread (&next, handle, buffer, 512, 0, 0, &err) == 0 && was_asked ("r"));
  filter->close (handle);

  /* What is offered is served, and what it does not have goes on. */
  to_offer = volume;
  handle = filter->open (plugin_open, NULL, 0, "v", 0);
  assert (handle != NULL && was_asked ("o"));
  answer = 1;
  assert (filter->prepare (&next, handle, 0) == 0 && was_asked ("c"));
  answer = 0;
  assert (filter->pwrite (&next, handle, data, 512, 512, 0, &err) == 0 && was_asked (""));
  assert (filter->pread (&next, handle, buffer, 512, 512, 0, &err) == 0 && was_asked (""));
  assert (memcmp (buffer, data, 512) == 0);
  assert (filter->pread (&next, handle, buffer, 512, BLOCK, 0, &err) == 0 && was_asked ("r"));
  assert (filter->pwrite (&next, handle, data, 1024, BLOCK - 512, 0, &err) == 0);
  assert (was_asked ("w"));

  /* FUA: a write that was done here is flushed there; one that was not is the plugin's in full. */
  assert (filter->pwrite (&next, handle, data, 512, 0, NBDKIT_FLAG_FUA, &err) == 0);
  assert (was_asked ("f") && flags_seen == 0);
  assert (filter->pwrite (&next, handle, data, 512, BLOCK, NBDKIT_FLAG_FUA, &err) == 0);
  assert (was_asked ("w") && flags_seen == NBDKIT_FLAG_FUA);

  /* Errors are the plugin's. */
  answer = -1;
  assert (filter->pwrite (&next, handle, data, 512, 0, NBDKIT_FLAG_FUA, &err) == -1);
  assert (err == EIO && was_asked ("f"));
  assert (filter->pwrite (&next, handle, data, 512, BLOCK, 0, &err) == -1);
  assert (err == ENOSPC && was_asked ("w"));
  assert (filter->prepare (&next, handle, 0) == -1 && was_asked ("c"));

  /* A connection keeps the volume; the last to let go frees it. */
  volume_unref (volume);
  assert (volume_count () == 1);
  filter->close (handle);
  assert (volume_count () == 0);
  close (device);
  write_much ();
  puts ("all as it should be");
  return 0;
}
