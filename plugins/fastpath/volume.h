/* A volume as the filter sees it: the mapping table that Python fills, a gate, and the data device.
 *
 * The table has one u64 for each virtual block (thinpoold/mapping_table.py is the other side):
 *
 *     0           unknown: Python's
 *     otherwise   bit 0: present; bit 1: may be written in place; bits 8..: the data block
 *
 * Invariants
 *
 * 1. Where the table, the size and the rest point changes only while the gate is closed. They are
 *    read inside the gate alone.
 * 2. An entry is read whole, and stored whole (table_store). Inside the gate it may change under a
 *    request, and whatever it saw stays true until it leaves; README.md says why.
 * 3. A request is done here in full or, from its start, by Python. Reading or writing a part of it
 *    twice does no harm: it has not been answered yet. So a large one leaves the gate and enters it
 *    again between its portions, and nobody who closes it waits for more than one.
 * 4. A volume lives as long as it has users: Python's object, and each connection.
 *
 * Thread-safety: any thread. Offsets, counts and sizes are bytes, but for `blocks`. */

#ifndef FASTPATH_VOLUME_H
#define FASTPATH_VOLUME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gate.h"

#define ENTRY_PRESENT UINT64_C (1)
#define ENTRY_WRITABLE UINT64_C (2)
#define ENTRY_IN_PLACE (ENTRY_PRESENT | ENTRY_WRITABLE)
#define ENTRY_SHIFT 8
#define ENTRY_STEP (UINT64_C (1) << ENTRY_SHIFT)

typedef _Atomic uint64_t table_entry;

struct volume {
  struct gate gate;
  atomic_uint users;
  /* What Python has shown of itself; guarded by the gate. */
  const table_entry *table;
  uint64_t size;
  uint64_t block_size;
  int fd;
  bool writable;
  /* How many bytes may be written before Python wants to be asked, or NULL for any number: what it
   * takes to keep the amount of unwritten data in bounds. Python stores into it, too. */
  _Atomic int64_t *credit;
};

/* Makes a volume that is withdrawn (its gate closed), with one user; NULL without memory. */
struct volume *volume_new (void);

/* One user more, and one less; the last one's going frees it. */
void volume_ref (struct volume *volume);
void volume_unref (struct volume *volume);

/* Says where everything is. The gate is closed. */
void volume_show (struct volume *volume, const table_entry *table, uint64_t blocks,
                  uint64_t block_size, uint64_t size, int fd, bool writable,
                  _Atomic int64_t *credit);

/* Reads or writes; false where Python has to do it. */
bool volume_read (struct volume *volume, void *buffer, uint32_t count, uint64_t offset);
bool volume_write (struct volume *volume, const void *buffer, uint32_t count, uint64_t offset);

/* Stores `value`, `value + step`, ... into `count` entries, each at once. */
void table_store (table_entry *entries, size_t count, uint64_t value, uint64_t step);

/* How many volumes there are: a leak shows here. */
unsigned volume_count (void);

#endif
