/* Threads read, write and move the blocks of one volume; nobody may ever meet a block that is not his.
 *
 * The volume and its gate are the filter's own (volume.c, gate.c); the program plays nbdkit and Python.
 * Each block of the "device" is full of one word: the number of the virtual block it belongs to, or
 * FREE. Readers check what they read. The mover takes data blocks away from virtual blocks, in all the
 * ways that Python does, marks them FREE, and sees that they stay so until it gives them to others: so
 * no write reaches a block that was taken away, and no read either. Besides, it swaps the table for
 * another and gives the old one's memory back.
 *
 * usage: harness TURNS. Says what went wrong, if anything, and ends with 1. Under a sanitizer, which
 * sees what does not go wrong by luck. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "volume.h"

#define BLOCK 4096
#define WORDS (BLOCK / sizeof (uint64_t))
#define VIRTUAL 16
#define DATA 24
#define FREE UINT64_MAX
#define READERS 3
#define WRITERS 2
#define LONGEST 4

static struct volume *volume;
static int device;
static atomic_bool ending;
static atomic_ullong served;
static _Atomic int64_t credit = INT64_MAX;

/* The mover's: where each virtual block is, and the table that the volume has. */
static uint64_t place[VIRTUAL];
static table_entry *table;

static void
fail (const char *what, uint64_t block, uint64_t found)
{
  fprintf (stderr, "%s: block %llu has %llu\n", what, (unsigned long long) block,
           (unsigned long long) found);
  exit (1);
}

static void
fill (uint64_t *words, uint64_t value)
{
  for (size_t n = 0; n < WORDS; n++)
    words[n] = value;
}

static void
check (const char *what, const uint64_t *words, uint64_t block, uint64_t wanted)
{
  for (size_t n = 0; n < WORDS; n++)
    if (words[n] != wanted)
      fail (what, block, words[n]);
}

static void
put (uint64_t data, uint64_t value)
{
  uint64_t words[WORDS];

  fill (words, value);
  if (pwrite (device, words, BLOCK, (off_t) (data * BLOCK)) != BLOCK)
    abort ();
}

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static void *
reader (void *seed)
{
  uint64_t state = *(uint64_t *) seed, words[LONGEST * WORDS];

  while (!atomic_load (&ending)) {
    uint64_t first = next_random (&state) % VIRTUAL;
    uint64_t count = 1 + next_random (&state) % LONGEST;

    if (first + count > VIRTUAL)
      count = VIRTUAL - first;
    if (!volume_read (volume, words, (uint32_t) (count * BLOCK), first * BLOCK))
      continue;
    for (uint64_t n = 0; n < count; n++)
      check ("read", words + n * WORDS, first + n, first + n);
    atomic_fetch_add (&served, 1);
  }
  return NULL;
}

static void *
writer (void *seed)
{
  uint64_t state = *(uint64_t *) seed, words[LONGEST * WORDS];

  while (!atomic_load (&ending)) {
    uint64_t first = next_random (&state) % VIRTUAL;
    uint64_t count = 1 + next_random (&state) % LONGEST;

    if (first + count > VIRTUAL)
      count = VIRTUAL - first;
    for (uint64_t n = 0; n < count; n++)
      fill (words + n * WORDS, first + n);
    if (volume_write (volume, words, (uint32_t) (count * BLOCK), first * BLOCK))
      atomic_fetch_add (&served, 1);
  }
  return NULL;
}

static uint64_t
entry (uint64_t data, uint64_t bits)
{
  return data << ENTRY_SHIFT | bits;
}

/* A data block that no virtual block has; it was marked FREE when it was taken away. */
static uint64_t
unused (uint64_t *state)
{
  for (;;) {
    uint64_t data = next_random (state) % DATA, words[WORDS];
    bool used = false;

    for (uint64_t n = 0; n < VIRTUAL; n++)
      used |= place[n] == data;
    if (used)
      continue;
    if (pread (device, words, BLOCK, (off_t) (data * BLOCK)) != BLOCK)
      abort ();
    check ("free", words, data, FREE);
    return data;
  }
}

/* As a discard: with the gate closed. Then the virtual block is written anew. */
static void
discard (uint64_t block, uint64_t *state)
{
  uint64_t old = place[block], data = unused (state);

  gate_close (&volume->gate);
  table_store (&table[block], 1, 0, 0);
  gate_open (&volume->gate);
  put (old, FREE);
  put (data, block);
  place[block] = data;
  table_store (&table[block], 1, entry (data, ENTRY_IN_PLACE), 0);
}

/* As a snapshot, and the breaking of its sharing: no more writes in place, and a grace period before
 * the old block is used again. */
static void
replace (uint64_t block, uint64_t *state)
{
  uint64_t old = place[block], data = unused (state);

  gate_close (&volume->gate);
  table_store (&table[block], 1, entry (old, ENTRY_PRESENT), 0);
  gate_open (&volume->gate);
  put (data, block);
  place[block] = data;
  table_store (&table[block], 1, entry (data, ENTRY_IN_PLACE), 0);
  gate_close (&volume->gate);
  gate_open (&volume->gate);
  put (old, FREE);
}

static table_entry *
new_table (void)
{
  table_entry *entries = malloc (VIRTUAL * sizeof *entries);

  if (entries == NULL)
    abort ();
  for (uint64_t n = 0; n < VIRTUAL; n++)
    atomic_init (&entries[n], entry (place[n], ENTRY_IN_PLACE));
  return entries;
}

static void
show (void)
{
  volume_show (volume, table, VIRTUAL, BLOCK, VIRTUAL * BLOCK, device, true, &credit);
}

/* As a resize: another table, nested in another closer. */
static void
swap (void)
{
  table_entry *old = table;

  gate_close (&volume->gate);
  gate_close (&volume->gate);
  table = new_table ();
  show ();
  gate_open (&volume->gate);
  gate_open (&volume->gate);
  /* Whoever still looked there would find somebody else's block. */
  table_store (old, VIRTUAL, entry (place[0], ENTRY_IN_PLACE), 0);
  free (old);
}

static void *
closer (void *unused_argument)
{
  (void) unused_argument;
  while (!atomic_load (&ending)) {
    gate_close (&volume->gate);
    gate_open (&volume->gate);
  }
  return NULL;
}

int
main (int argc, char **argv)
{
  pthread_t threads[READERS + WRITERS + 1];
  uint64_t seeds[READERS + WRITERS], state = 88172645463325252;
  const uint64_t turns = argc > 1 ? strtoull (argv[1], NULL, 10) : 1000;
  unsigned count = 0;

  device = memfd_create ("device", MFD_CLOEXEC);
  if (device < 0)
    abort ();
  for (uint64_t data = 0; data < DATA; data++)
    put (data, data < VIRTUAL ? data : FREE);
  for (uint64_t n = 0; n < VIRTUAL; n++)
    place[n] = n;
  volume = volume_new ();
  if (volume == NULL)
    abort ();
  table = new_table ();
  show ();
  gate_open (&volume->gate);

  for (; count < READERS + WRITERS; count++) {
    seeds[count] = 1000 + count;
    if (pthread_create (&threads[count], NULL, count < READERS ? reader : writer, &seeds[count]))
      abort ();
  }
  if (pthread_create (&threads[count], NULL, closer, NULL))
    abort ();
  /* Until as much was served as was changed, too, however the threads are scheduled. */
  for (uint64_t turn = 0; turn < turns || atomic_load (&served) < turns; turn++) {
    const uint64_t block = next_random (&state) % VIRTUAL;

    if (turn % 3 == 0)
      discard (block, &state);
    else if (turn % 3 == 1)
      replace (block, &state);
    else
      swap ();
  }
  atomic_store (&ending, true);
  for (unsigned n = 0; n <= count; n++)
    pthread_join (threads[n], NULL);
  gate_close (&volume->gate);
  volume_unref (volume);
  free (table);
  if (volume_count () != 0)
    fail ("volumes left", 0, volume_count ());
  printf ("%llu requests served\n", (unsigned long long) atomic_load (&served));
  return 0;
}
