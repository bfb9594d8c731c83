/* A volume's gate on the C side; see gate.h. */

#include "gate.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hooks.h"

_Static_assert (sizeof (atomic_uint) == sizeof (uint32_t), "the kernel waits on 32 bits");
_Static_assert (sizeof (struct gate_shard) == CACHE_LINE, "a shard is a cache line");

static atomic_uint threads;
static _Thread_local unsigned own_shard = UINT_MAX;

unsigned
gate_shard_of_thread (void)
{
  if (own_shard == UINT_MAX)
    own_shard = atomic_fetch_add_explicit (&threads, 1, memory_order_relaxed) % GATE_SHARDS;
  return own_shard;
}

void
gate_init (struct gate *gate)
{
  atomic_init (&gate->closers, 0);
  atomic_init (&gate->departures, 0);
  for (unsigned n = 0; n < GATE_SHARDS; n++)
    atomic_init (&gate->shards[n].inside, 0);
}

void
gate_wake (struct gate *gate)
{
  atomic_fetch_add_explicit (&gate->departures, 1, memory_order_seq_cst);
  syscall (SYS_futex, &gate->departures, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Waits until a shard was seen empty. It may be counted in again by requests that come later, but
 * those see the closer and touch nothing. */
static void
drain (struct gate *gate, struct gate_shard *shard)
{
  for (;;) {
    unsigned seen = atomic_load_explicit (&gate->departures, memory_order_seq_cst);

    if (atomic_load_explicit (&shard->inside, memory_order_seq_cst) == 0)
      return;
    HOOK (HOOK_CLOSER_WAITS);
    /* Returns at once if one has left since; and by signals, which is as well. */
    syscall (SYS_futex, &gate->departures, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
  }
}

void
gate_close (struct gate *gate)
{
  atomic_fetch_add_explicit (&gate->closers, 1, memory_order_seq_cst);
  for (unsigned n = 0; n < GATE_SHARDS; n++)
    drain (gate, &gate->shards[n]);
}

void
gate_open (struct gate *gate)
{
  atomic_fetch_sub_explicit (&gate->closers, 1, memory_order_seq_cst);
}
