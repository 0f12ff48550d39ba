/* A log-linear histogram of microseconds: 64 steps per power of two, so a quantile is right to 1.6 %. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HISTOGRAM_STEPS 64
#define HISTOGRAM_BUCKETS (HISTOGRAM_STEPS * 36)

struct histogram {
    uint64_t count;
    double sum;
    uint64_t max;
    uint32_t buckets[HISTOGRAM_BUCKETS];
};

static int histogram_index(uint64_t value) {
    if (value < HISTOGRAM_STEPS)
        return (int)value;
    int shift = 63 - __builtin_clzll(value) - 6;
    int index = (shift + 1) * HISTOGRAM_STEPS + (int)((value >> shift) - HISTOGRAM_STEPS);
    return index < HISTOGRAM_BUCKETS ? index : HISTOGRAM_BUCKETS - 1;
}

static double histogram_value(int index) {
    if (index < HISTOGRAM_STEPS)
        return index;
    int shift = index / HISTOGRAM_STEPS - 1;
    return ((double)(index % HISTOGRAM_STEPS + HISTOGRAM_STEPS) + 0.5) * (double)(1ull << shift);
}

static void histogram_add(struct histogram *h, uint64_t value) {
    h->count++;
    h->sum += (double)value;
    if (value > h->max)
        h->max = value;
    h->buckets[histogram_index(value)]++;
}

static void histogram_merge(struct histogram *into, const struct histogram *from) {
    into->count += from->count;
    into->sum += from->sum;
    if (from->max > into->max)
        into->max = from->max;
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++)
        into->buckets[i] += from->buckets[i];
}

static double histogram_quantile(const struct histogram *h, double q) {
    uint64_t rank = (uint64_t)(q * (double)h->count), seen = 0;
    if (rank >= h->count)
        return (double)h->max;
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > rank) {
            double value = histogram_value(i);
            return value > (double)h->max ? (double)h->max : value;
        }
    }
    return (double)h->max;
}

static void histogram_print(FILE *out, const char *name, const struct histogram *h) {
    fprintf(out, "\"%s\":{\"count\":%llu", name, (unsigned long long)h->count);
    if (h->count)
        fprintf(out, ",\"mean\":%.2f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%llu",
                h->sum / (double)h->count, histogram_quantile(h, 0.5), histogram_quantile(h, 0.9),
                histogram_quantile(h, 0.99), histogram_quantile(h, 0.999), (unsigned long long)h->max);
    fputc('}', out);
}

#endif
