/* A volume as the filter sees it; see volume.h. */

#include "volume.h"

#include <stdlib.h>
#include <unistd.h>

#include "hooks.h"

_Static_assert (sizeof (table_entry) == 8, "an entry is eight bytes, as Python has it");
_Static_assert (ATOMIC_LLONG_LOCK_FREE == 2, "an entry is loaded and stored at once");

/* No write goes past a multiple of this, so that the page cache's folios stay small: as in
 * thinpoold/device.py, which says why. */
#define FOLIO_BYTES (128u << 10)

/* The most that is read or written in one stay in the gate: what a disk of 100 MB/s moves in 40 ms.
 * Whoever closes the gate waits no longer. As MAX_RUN_BYTES in thinpoold/provision.py. */
#define PORTION_BYTES (4u << 20)

static atomic_uint volumes;

struct volume *
volume_new (void)
{
  struct volume *volume = aligned_alloc (CACHE_LINE, sizeof *volume);

  if (volume == NULL)
    return NULL;
  *volume = (struct volume){ .fd = -1 };
  gate_init (&volume->gate);
  gate_close (&volume->gate);
  atomic_init (&volume->users, 1);
  atomic_fetch_add_explicit (&volumes, 1, memory_order_relaxed);
  return volume;
}

void
volume_ref (struct volume *volume)
{
  atomic_fetch_add_explicit (&volume->users, 1, memory_order_relaxed);
}

void
volume_unref (struct volume *volume)
{
  if (atomic_fetch_sub_explicit (&volume->users, 1, memory_order_acq_rel) != 1)
    return;
  atomic_fetch_sub_explicit (&volumes, 1, memory_order_relaxed);
  free (volume);
}

unsigned
volume_count (void)
{
  return atomic_load_explicit (&volumes, memory_order_relaxed);
}

void
volume_show (struct volume *volume, const table_entry *table, uint64_t blocks, uint64_t block_size,
             uint64_t size, int fd, bool writable, _Atomic int64_t *credit)
{
  volume->table = table;
  volume->block_size = block_size;
  /* No look-up past the table, whatever the size says. */
  volume->size = size / block_size < blocks ? size : blocks * block_size;
  volume->fd = fd;
  volume->writable = writable;
  volume->credit = credit;
}

void
table_store (table_entry *entries, size_t count, uint64_t value, uint64_t step)
{
  for (size_t n = 0; n < count; n++, value += step)
    atomic_store_explicit (&entries[n], value, memory_order_release);
}

static inline uint64_t
load (const table_entry *entry)
{
  return atomic_load_explicit (entry, memory_order_acquire);
}

/* Whether `count` bytes may be written before Python is asked. Requests at the same time may take a
 * little more together than there is: it is no exact account. */
static inline bool
has_credit (const struct volume *volume, uint32_t count)
{
  return volume->credit == NULL ||
         atomic_load_explicit (volume->credit, memory_order_relaxed) >= count;
}

static inline void
take_credit (const struct volume *volume, uint32_t count)
{
  if (volume->credit != NULL)
    atomic_fetch_sub_explicit (volume->credit, count, memory_order_relaxed);
}

/* What is left of a request; it reads where `from` is NULL. */
struct request {
  char *into;
  const char *from;
  uint32_t left;
};

/* Does the I/O of the request's first `count` bytes, which are in one piece on the device. Neither
 * errors nor short transfers are dealt with here, in a second place. */
static bool
transfer (int fd, struct request *request, uint32_t count, uint64_t offset)
{
  request->left -= count;
  if (request->from == NULL) {
    if (pread (fd, request->into, count, (off_t) offset) != (ssize_t) count)
      return false;
    request->into += count;
    return true;
  }
  while (count != 0) {
    const uint32_t most = FOLIO_BYTES - (uint32_t) (offset % FOLIO_BYTES);
    const uint32_t piece = count < most ? count : most;

    if (pwrite (fd, request->from, piece, (off_t) offset) != (ssize_t) piece)
      return false;
    request->from += piece;
    offset += piece;
    count -= piece;
  }
  return true;
}

static inline bool
has (uint64_t entry, uint64_t wanted)
{
  return (entry & wanted) == wanted;
}

static bool
all_have (const table_entry *entry, const table_entry *end, uint64_t wanted)
{
  for (; entry < end; entry++)
    if (!has (load (entry), wanted))
      return false;
  return true;
}

/* Does a request of which every entry has the bits of `wanted`. Inside the gate. */
static bool
serve (const struct volume *volume, struct request request, uint64_t offset, uint64_t wanted)
{
  const uint64_t size = volume->block_size;
  uint64_t within = offset % size;
  const table_entry *entry = &volume->table[offset / size];
  const table_entry *end = entry + 1;

  if (request.left > size - within) {
    end = entry + (within + request.left - 1) / size + 1;
    /* Looked at first, so that nothing large is half done before Python does it over. */
    if (!all_have (entry, end, wanted))
      return false;
  }
  while (request.left != 0) {
    uint64_t value = load (entry++);
    const uint64_t place = (value >> ENTRY_SHIFT) * size + within;
    uint64_t count = size - within;

    /* Again, for it may be another by now. */
    if (!has (value, wanted))
      return false;
    /* Adjacent data blocks are one transfer. */
    for (; entry < end; entry++, count += size) {
      const uint64_t next = load (entry);

      if (!has (next, wanted) || next >> ENTRY_SHIFT != (value >> ENTRY_SHIFT) + 1)
        break;
      value = next;
    }
    HOOK (request.from == NULL ? HOOK_READ_LOOKED_UP : HOOK_WRITE_LOOKED_UP);
    if (!transfer (volume->fd, &request, count < request.left ? (uint32_t) count : request.left,
                   place))
      return false;
    within = 0;
  }
  return true;
}

static inline bool
in_range (const struct volume *volume, uint32_t count, uint64_t offset)
{
  return count != 0 && count <= volume->size && offset <= volume->size - count;
}

/* Whether every entry of a request of several portions has the bits of `wanted`: looked at first, so
 * that nothing large is half done before Python does it over. */
static bool
all_of (struct volume *volume, uint32_t count, uint64_t offset, uint64_t wanted)
{
  const unsigned shard = gate_shard_of_thread ();
  bool have;

  if (!gate_enter (&volume->gate, shard))
    return false;
  have = in_range (volume, count, offset) &&
         all_have (&volume->table[offset / volume->block_size],
                   &volume->table[(offset + count - 1) / volume->block_size] + 1, wanted);
  gate_leave (&volume->gate, shard);
  return have;
}

static bool
read_portion (struct volume *volume, char *buffer, uint32_t count, uint64_t offset)
{
  const unsigned shard = gate_shard_of_thread ();
  bool done;

  if (!gate_enter (&volume->gate, shard))
    return false;
  done = in_range (volume, count, offset) &&
         serve (volume, (struct request){ .into = buffer, .left = count }, offset, ENTRY_PRESENT);
  gate_leave (&volume->gate, shard);
  return done;
}

static bool
write_portion (struct volume *volume, const char *buffer, uint32_t count, uint64_t offset)
{
  const unsigned shard = gate_shard_of_thread ();
  bool done;

  if (!gate_enter (&volume->gate, shard))
    return false;
  done = volume->writable && in_range (volume, count, offset) && has_credit (volume, count) &&
         serve (volume, (struct request){ .from = buffer, .left = count }, offset, ENTRY_IN_PLACE);
  /* What Python does instead, Python takes into account. */
  if (done)
    take_credit (volume, count);
  gate_leave (&volume->gate, shard);
  return done;
}

bool
volume_read (struct volume *volume, void *buffer, uint32_t count, uint64_t offset)
{
  char *into = buffer;

  if (count > PORTION_BYTES && !all_of (volume, count, offset, ENTRY_PRESENT))
    return false;
  while (count > PORTION_BYTES) {
    if (!read_portion (volume, into, PORTION_BYTES, offset))
      return false;
    into += PORTION_BYTES;
    offset += PORTION_BYTES;
    count -= PORTION_BYTES;
  }
  return read_portion (volume, into, count, offset);
}

bool
volume_write (struct volume *volume, const void *buffer, uint32_t count, uint64_t offset)
{
  const char *from = buffer;

  if (count > PORTION_BYTES && !all_of (volume, count, offset, ENTRY_IN_PLACE))
    return false;
  while (count > PORTION_BYTES) {
    if (!write_portion (volume, from, PORTION_BYTES, offset))
      return false;
    from += PORTION_BYTES;
    offset += PORTION_BYTES;
    count -= PORTION_BYTES;
  }
  return write_portion (volume, from, count, offset);
}
