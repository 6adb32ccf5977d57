// Threads that work through the same stages: tasks from a counter, and a place where they wait for each other.
//
// Threads are PyTorch's own: GOMP_parallel is that of the OpenMP library which it has loaded. A second library would
// have threads of its own, and both would wait for work on the same cores. Its barrier sleeps at once where a server
// has told it so (GOMP_SPINCOUNT, serve/cores.py): a query of 1 ms has 60 of them, and each would cost more than the
// stage before it. This one stays awake for about as long as a stage of a query takes, then sleeps.

#pragma once

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_num_threads(void);

// A pause is 40 to 140 cycles, so this is 20 to 100 microseconds.
enum { PAUSES = 2000 };

struct team {
    int next __attribute__((aligned(64))); // first task of the stage that nobody has taken
    int here __attribute__((aligned(64))); // threads that are done with it
    int stage __attribute__((aligned(64)));
    int asleep;
};

// Returns when all `size` threads have come; the next stage then begins with its first task.
static void meet(struct team *t, int size) {
    const int stage = __atomic_load_n(&t->stage, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&t->here, 1, __ATOMIC_ACQ_REL) == size) {
        t->here = t->next = 0;
        __atomic_store_n(&t->stage, stage + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&t->asleep, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &t->stage, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        return;
    }
    for (int i = 0; i < PAUSES; i++) {
        if (__atomic_load_n(&t->stage, __ATOMIC_ACQUIRE) != stage) return;
        _mm_pause();
    }
    __atomic_add_fetch(&t->asleep, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&t->stage, __ATOMIC_SEQ_CST) == stage)
        syscall(SYS_futex, &t->stage, FUTEX_WAIT_PRIVATE, stage, NULL, NULL, 0);
    __atomic_sub_fetch(&t->asleep, 1, __ATOMIC_SEQ_CST);
}
