/* A binary heap of things to do later, and the clock they go by (CLOCK_MONOTONIC, ns). */
#ifndef BENCH_TIMERS_H
#define BENCH_TIMERS_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

struct timed {
    uint64_t due;
    int task;
    void *subject;
};

static struct timed *timers;
static size_t timer_count, timer_capacity;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void later(uint64_t due, int task, void *subject) {
    if (timer_count == timer_capacity) {
        timer_capacity = timer_capacity ? timer_capacity * 2 : 1024;
        timers = realloc(timers, timer_capacity * sizeof *timers);
        if (!timers)
            abort();
    }
    size_t i = timer_count++;
    while (i && timers[(i - 1) / 2].due > due) {
        timers[i] = timers[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    timers[i] = (struct timed){due, task, subject};
}

static struct timed soonest(void) {
    struct timed top = timers[0], last = timers[--timer_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= timer_count)
            break;
        if (child + 1 < timer_count && timers[child + 1].due < timers[child].due)
            child++;
        if (timers[child].due >= last.due)
            break;
        timers[i] = timers[child];
        i = child;
    }
    timers[i] = last;
    return top;
}

/* Milliseconds that epoll_wait() may wait before something is due; -1 when nothing ever is. */
static int timers_wait(void) {
    uint64_t now = now_ns();
    if (!timer_count)
        return -1;
    return timers[0].due <= now ? 0 : (int)((timers[0].due - now + 999999) / 1000000);
}

#endif
