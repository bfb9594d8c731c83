/* Points at which a test build can be held up; nothing in any other build. */

#ifndef FASTPATH_HOOKS_H
#define FASTPATH_HOOKS_H

/* What is told to the test, as one byte. */
#define HOOK_READ_LOOKED_UP 'r'
#define HOOK_WRITE_LOOKED_UP 'w'
#define HOOK_CLOSER_WAITS 'c'

#ifdef FASTPATH_TEST_HOOKS
void hook (char point);
#define HOOK(point) hook (point)
#else
#define HOOK(point) ((void) 0)
#endif

#endif
