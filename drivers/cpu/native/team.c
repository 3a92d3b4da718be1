#define _POSIX_C_SOURCE 199309L /* clock_gettime */

/* A small team of threads for steps of a few milliseconds with hundreds of phases.

   OpenMP's barriers cost little too, but its threads are shared with torch's and spin against them. Here the items of a
   phase go to the members that are free, in runs that grow shorter towards the end, and a phase is over when its items
   are finished: a member that has lost its core to another program holds it up by the run it has begun, or, between two,
   not at all. A member that waits spins shortly, then offers its core. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "native.h"

#define SPINS 2000 /* some 30 us: most phases are shorter */
/* For so long after a step a member offers its core without sleeping: the next step comes within it while there is one,
   and a core that has gone to sleep takes its time to wake for the programs that bring it. */
#define AWAKE_NANOSECONDS 2000000

typedef struct {
    _Alignas(64) atomic_llong taken; /* items */
    _Alignas(64) atomic_llong finished;
} phase;

struct team {
    int64_t size, phases;
    phase *phase;
    void (*work)(member *, void *);
    void *argument;
    atomic_llong round;   /* of work; grows when there is some */
    atomic_llong at_rest; /* members that have come back from it */
    atomic_int over;
    pthread_mutex_t lock; /* for members that sleep between rounds */
    pthread_cond_t more;
    pthread_t *threads; /* size - 1 */
};

typedef struct {
    team *team;
    int64_t index;
} start;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static long long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

void nap(void)
{
    const struct timespec shortly = {0, 50000};
    nanosleep(&shortly, NULL);
}

static void *serve(void *argument)
{
    const start begin = *(start *)argument;
    team *const team = begin.team;
    free(argument);
    for (long long seen = 0;; seen++) {
        for (int spin = 0; spin < SPINS && atomic_load_explicit(&team->round, memory_order_acquire) == seen; spin++)
            relax();
        for (const long long until = nanoseconds() + AWAKE_NANOSECONDS;
             atomic_load_explicit(&team->round, memory_order_acquire) == seen && nanoseconds() < until;)
            sched_yield();
        if (atomic_load_explicit(&team->round, memory_order_acquire) == seen) {
            pthread_mutex_lock(&team->lock);
            while (atomic_load_explicit(&team->round, memory_order_acquire) == seen)
                pthread_cond_wait(&team->more, &team->lock);
            pthread_mutex_unlock(&team->lock);
        }
        if (atomic_load(&team->over)) return NULL;
        member self = {team, begin.index, 0, 0};
        team->work(&self, team->argument);
        atomic_fetch_add_explicit(&team->at_rest, 1, memory_order_release);
    }
}

static void begin_round(team *team)
{
    pthread_mutex_lock(&team->lock); /* so that nobody falls asleep between looking at `round` and waiting */
    atomic_fetch_add_explicit(&team->round, 1, memory_order_release);
    pthread_cond_broadcast(&team->more);
    pthread_mutex_unlock(&team->lock);
}

team *team_start(int64_t threads, int64_t phases)
{
    team *made = aligned_alloc(64, (sizeof *made + 63) / 64 * 64);
    if (!made) return NULL;
    *made = (team){.size = 1, .phases = phases};
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->more, NULL);
    made->phase = aligned_alloc(64, (size_t)phases * sizeof *made->phase);
    made->threads = calloc((size_t)threads, sizeof *made->threads);
    if (!made->phase || !made->threads) {
        team_stop(made);
        return NULL;
    }
    for (int64_t i = 1; i < threads; i++) {
        start *begin = malloc(sizeof *begin);
        if (begin) *begin = (start){made, i};
        if (!begin || pthread_create(&made->threads[i - 1], NULL, serve, begin)) {
            free(begin);
            team_stop(made);
            return NULL;
        }
        made->size++;
    }
    return made;
}

void team_stop(team *team)
{
    atomic_store(&team->over, 1);
    begin_round(team);
    for (int64_t i = 0; i < team->size - 1; i++) pthread_join(team->threads[i], NULL);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->more);
    free(team->threads);
    free(team->phase);
    free(team);
}

int64_t team_size(const team *team) { return team->size; }

static void wait_for(const atomic_llong *count, long long wanted)
{
    for (int spin = 0; atomic_load_explicit(count, memory_order_acquire) < wanted; spin++) {
        if (spin < SPINS)
            relax();
        else
            sched_yield();
    }
}

void team_run(team *team, void (*work)(member *, void *), void *argument)
{
    for (int64_t i = 0; i < team->phases; i++) {
        atomic_init(&team->phase[i].taken, 0);
        atomic_init(&team->phase[i].finished, 0);
    }
    team->work = work;
    team->argument = argument;
    atomic_store_explicit(&team->at_rest, 0, memory_order_relaxed);
    if (team->size > 1) begin_round(team);
    member self = {team, 0, 0, 0};
    work(&self, argument);
    wait_for(&team->at_rest, team->size - 1);
}

int64_t team_take(member *self, int64_t items, int64_t *last)
{
    phase *const phase = &self->team->phase[self->phase];
    if (self->taken) atomic_fetch_add_explicit(&phase->finished, self->taken, memory_order_acq_rel);
    self->taken = 0;
    long long first = atomic_load_explicit(&phase->taken, memory_order_relaxed);
    do {
        if (first >= items) return -1;
        const int64_t share = (items - first) / (2 * self->team->size);
        *last = first + (share > 1 ? share : 1);
    } while (
        !atomic_compare_exchange_weak_explicit(&phase->taken, &first, *last, memory_order_relaxed, memory_order_relaxed));
    self->taken = *last - first;
    return first;
}

void team_next(member *self, int64_t items) { wait_for(&self->team->phase[self->phase++].finished, items); }
