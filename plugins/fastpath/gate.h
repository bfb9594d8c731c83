/* A volume's gate on the C side: requests pass through it, and whoever must be alone closes it.
 *
 *     request                        closer
 *     gate_enter() .. gate_leave()   gate_close() .. gate_open()
 *
 * A request never waits here: where the gate is closed, or about to be, gate_enter() says no, and
 * the request goes to Python, which has a gate of its own to wait at.
 *
 * Invariants
 *
 * 1. From the return of gate_close() to the call of gate_open(), nobody is inside, and all that was
 *    done inside before happens before that return.
 * 2. Nobody inside waits for anything but the data device: not for a lock, nor for Python. So
 *    gate_close() ends.
 * 3. A request leaves on the thread on which it entered, and a closer is not inside.
 * 4. Closers may overlap and nest: the gate is open when as many have opened it as have closed it.
 *
 * Why it is enough (README.md has the proof): a request counts itself in and then looks for closers;
 * a closer counts itself as one and then looks for requests. All four steps are sequentially
 * consistent, so at least one sees the other. The same holds for a request that leaves, which first
 * counts itself out and then looks whether somebody waits for that.
 *
 * Thread-safety: any thread. */

#ifndef FASTPATH_GATE_H
#define FASTPATH_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Requests are counted in so many places, each with a cache line of its own, so that threads on
 * different processors do not fight for one. */
#define GATE_SHARDS 16
#define CACHE_LINE 64

struct gate_shard {
  _Alignas (CACHE_LINE) atomic_uint inside;
};

struct gate {
  /* How many keep it closed. Read by every request, written by closers alone. */
  _Alignas (CACHE_LINE) atomic_uint closers;
  /* Goes up whenever one leaves while it is closed; closers sleep on it (futex). */
  _Alignas (CACHE_LINE) atomic_uint departures;
  struct gate_shard shards[GATE_SHARDS];
};

/* Makes an open gate. */
void gate_init (struct gate *gate);

/* Closes it, and waits until nobody is inside. */
void gate_close (struct gate *gate);

/* Takes one gate_close() back. */
void gate_open (struct gate *gate);

/* Tells closers that one has left. */
void gate_wake (struct gate *gate);

/* The shard in which this thread counts itself. */
unsigned gate_shard_of_thread (void);

/* Begins a request; false where the gate is closed, and then there is nothing to leave. */
static inline bool
gate_enter (struct gate *gate, unsigned shard)
{
#ifdef FASTPATH_NO_GATE
  /* For the test that must fail then. */
  (void) gate;
  (void) shard;
  return true;
#else
  atomic_uint *inside = &gate->shards[shard].inside;

  /* A volume that is withdrawn for long costs its requests this much and no more. */
  if (atomic_load_explicit (&gate->closers, memory_order_relaxed) != 0)
    return false;
  atomic_fetch_add_explicit (inside, 1, memory_order_seq_cst);
  if (atomic_load_explicit (&gate->closers, memory_order_seq_cst) == 0)
    return true;
  atomic_fetch_sub_explicit (inside, 1, memory_order_seq_cst);
  gate_wake (gate);
  return false;
#endif
}

/* Ends a request that gate_enter() let in. */
static inline void
gate_leave (struct gate *gate, unsigned shard)
{
#ifdef FASTPATH_NO_GATE
  (void) gate;
  (void) shard;
#else
  atomic_fetch_sub_explicit (&gate->shards[shard].inside, 1, memory_order_seq_cst);
  if (atomic_load_explicit (&gate->closers, memory_order_seq_cst) != 0)
    gate_wake (gate);
#endif
}

#endif
