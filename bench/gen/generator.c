/* The load generator: many connections from one thread, each reading in its own manner, every token checked.
 *
 * Commands come on stdin, one flat JSON object per line; answers go to stdout, one per line. generator.py speaks the same.
 *   {"cmd":"expect","path":…}                       tokens that streams consist of (u32 length + bytes, each), repeating
 *   {"cmd":"group","name":…,"count":N,"mode":"fast|paced|stalled|short|handshake","request":…, …}     see read_group()
 *   {"cmd":"run"}                                   connect; then "connected" and "streaming" are reported
 *   {"cmd":"snap"}                                  counters so far, with our own CPU time
 *   {"cmd":"reset"}                                 forget histograms: what follows is the measurement
 *   {"cmd":"leave","group":…,"every_ms":…,"rst":…}  close these connections, one after another, noting when
 *   {"cmd":"stop"}                                  the result, and exit
 *
 * Rule 1: SO_RCVBUF is set before connect(), where it still decides the window.
 * Rule 2: time is CLOCK_MONOTONIC. A token's arrival is the time of the read() that completed it.
 * Rule 3: one read per readiness, so that one fast stream cannot hide another. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "histogram.h"
#include "response.h"
#include "secure.h"
#include "timers.h"

enum mode { FAST, PACED, STALLED, SHORT, HANDSHAKE };
enum life { UNBORN, CONNECTING, SECURING, OPEN, FINISHED, LEFT, FAILED };
enum task { TASK_CONNECT, TASK_READ, TASK_LEAVE };

struct connection;

struct group {
    char name[48];
    enum mode mode;
    enum dialect dialect;
    int count, rcvbuf, sequential, rst;
    int tls, resume; /* HANDSHAKE: resume with the ticket of the connection before */
    char *request;
    size_t request_length;
    char *mark; /* where the connection's number goes into the request: '@@@@@@' */
    size_t read_bytes;
    double every_ms, start_ms, ramp_ms, rate;
    uint64_t tokens;      /* each answer has exactly so many; 0: endless */
    uint64_t leave_after; /* leave by itself after so many tokens */
    uint64_t stall_after; /* read nothing more after so many tokens */
    uint64_t requests;    /* SHORT: answers per connection; 0: until stopped */
    struct sockaddr_in address;
    struct expected expected;
    struct connection *connections;
    /* counters */
    uint64_t connected, answered, begun, completed, cut, wrong, bad_status, failed, closed_by_server, reconnects, left, resumed;
    uint64_t got_tokens, got_bytes, reads, settled;
    uint64_t last_first_token; /* ns since run */
    char first_wrong[200];
    struct histogram gap, late, answer, first;
};

struct connection {
    struct group *group;
    int fd, index, watching;
    enum life life;
    int server_ended, counted_settled;
    size_t sent;
    uint64_t started, first, last; /* ns; started: when connect() was called, or the next request sent */
    uint64_t left_at, answers;
    uint32_t *arrivals; /* µs since `first`, one per token, when the group has a rate */
    uint64_t arrivals_count, arrivals_capacity;
    int64_t first_us; /* first token of the first answer; -1: none yet */
    struct response response;
    struct secure secure;
};

static struct group *groups[64];
static int group_count, running, reported_connected, reported_streaming;
static struct expected expected;
static int epoll_fd;
static uint64_t run_at, loops;
static char buffer[256 * 1024];

static void fail(const char *what) {
    printf("{\"event\":\"error\",\"message\":");
    json_print(stdout, what, strlen(what));
    printf("}\n");
    fflush(stdout);
    exit(1);
}

static void watch(struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, c->watching ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event);
    c->watching = 1;
}

/* A connection is settled when it streams or never will: "streaming" is reported once all are. */
static void settle(struct connection *c) {
    if (c->counted_settled)
        return;
    c->counted_settled = 1;
    c->group->settled++;
    if (c->group->sequential && c->index + 1 < c->group->count)
        later(now_ns(), TASK_CONNECT, &c->group->connections[c->index + 1]);
}

static void hang_up(struct connection *c, enum life life) {
    if (c->fd >= 0) {
        secure_end(&c->secure, life == FINISHED);
        close(c->fd);
        c->fd = -1;
        c->watching = 0;
    }
    c->life = life;
    response_free(&c->response);
    settle(c);
}

static void broken(struct connection *c, const char *why) {
    struct group *g = c->group;
    if (!g->first_wrong[0])
        snprintf(g->first_wrong, sizeof g->first_wrong, "connection %d: %s", c->index, why);
}

static void begin_connect(struct connection *c) {
    struct group *g = c->group;
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail(strerror(errno));
    if (g->rcvbuf)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &g->rcvbuf, sizeof g->rcvbuf);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->started = now_ns();
    c->sent = 0;
    c->life = CONNECTING;
    response_reset(&c->response);
    if (connect(c->fd, (struct sockaddr *)&g->address, sizeof g->address) && errno != EINPROGRESS) {
        g->failed++;
        broken(c, strerror(errno));
        hang_up(c, FAILED);
        return;
    }
    watch(c, EPOLLOUT);
}

static void send_request(struct connection *c) {
    struct group *g = c->group;
    if (g->mark) {
        char number[16];
        snprintf(number, sizeof number, "%06d", c->index % 1000000);
        memcpy(g->mark, number, 6);
    }
    ssize_t n = secure_send(&c->secure, c->fd, g->request + c->sent, g->request_length - c->sent);
    if (n < 0) {
        if (errno == EAGAIN)
            return;
        g->failed++;
        broken(c, strerror(errno));
        hang_up(c, FAILED);
        return;
    }
    c->sent += (size_t)n;
    if (c->sent < g->request_length) {
        watch(c, EPOLLOUT);
        return;
    }
    if (g->mode == STALLED) {
        watch(c, EPOLLET | EPOLLRDHUP);
        settle(c);
    } else if (g->mode == PACED) {
        watch(c, EPOLLET | EPOLLRDHUP);
        /* spread over one interval, so that the slow ones do not read in step */
        later(now_ns() + (uint64_t)(g->every_ms * 1e6 * (1.0 + (double)c->index / g->count)), TASK_READ, c);
    } else
        watch(c, EPOLLIN | EPOLLRDHUP);
}

static void arrived(struct connection *c, uint64_t tokens, uint64_t now) {
    struct group *g = c->group;
    g->got_tokens += tokens;
    if (!c->first) {
        c->first = now;
        histogram_add(&g->first, (now - c->started) / 1000);
        if (c->first_us < 0) {
            c->first_us = (int64_t)((now - c->started) / 1000);
            g->begun++;
            if (now - run_at > g->last_first_token)
                g->last_first_token = now - run_at;
        }
        settle(c);
    } else if (c->last)
        histogram_add(&g->gap, (now - c->last) / 1000);
    c->last = now;
    if (g->rate > 0) {
        if (c->arrivals_count + tokens > c->arrivals_capacity) {
            c->arrivals_capacity = (c->arrivals_count + tokens) * 2;
            c->arrivals = realloc(c->arrivals, c->arrivals_capacity * sizeof *c->arrivals);
            if (!c->arrivals)
                fail("out of memory");
        }
        for (uint64_t i = 0; i < tokens; i++)
            c->arrivals[c->arrivals_count++] = (uint32_t)((now - c->first) / 1000);
    }
}

/* How late each token was against the stream's own even schedule, anchored at its least late token. */
static void judge_pace(struct connection *c) {
    struct group *g = c->group;
    double step = 1e6 / (g->rate > 0 ? g->rate : 1), least = 1e18;
    for (uint64_t i = 0; i < c->arrivals_count; i++)
        if (c->arrivals[i] - (double)i * step < least)
            least = c->arrivals[i] - (double)i * step;
    for (uint64_t i = 0; i < c->arrivals_count; i++)
        histogram_add(&g->late, (uint64_t)(c->arrivals[i] - (double)i * step - least));
    c->arrivals_count = 0;
}

static void leave(struct connection *c, int rst) {
    if (c->fd < 0)
        return;
    if (rst) {
        struct linger linger = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    c->left_at = now_ns();
    c->group->left++;
    hang_up(c, LEFT);
}

/* The answer has ended, cleanly or not: judge it. `clean`: the framing said so. */
static void ended(struct connection *c, int clean) {
    struct group *g = c->group;
    struct response *r = &c->response;
    uint64_t now = now_ns();
    if (r->status && r->status != 200) {
        g->bad_status++;
        snprintf(r->wrong, sizeof r->wrong, "status %d", r->status);
        broken(c, r->wrong);
    } else if (r->wrong[0]) {
        g->wrong++;
        broken(c, r->wrong);
    } else if (!clean || (g->dialect != PLAIN && !r->done) || !r->status) {
        g->cut++;
        if (!r->status)
            broken(c, "closed without an answer");
        else {
            char why[120];
            snprintf(why, sizeof why, "cut after %llu tokens (%s)", (unsigned long long)r->tokens,
                     clean ? "clean end without the terminal event" : "framing cut");
            broken(c, why);
        }
    } else if (g->tokens && r->tokens != g->tokens) {
        char why[120];
        snprintf(why, sizeof why, "complete with %llu tokens of %llu", (unsigned long long)r->tokens, (unsigned long long)g->tokens);
        g->wrong++;
        broken(c, why);
    } else {
        g->completed++;
        histogram_add(&g->answer, (now - c->started) / 1000);
    }
    if (g->rate > 0)
        judge_pace(c);
    c->answers++;
    if (g->mode == SHORT && (!g->requests || c->answers < g->requests)) {
        c->first = c->last = 0;
        if (r->close || !clean) {
            secure_end(&c->secure, clean);
            close(c->fd);
            c->watching = 0;
            g->reconnects++;
            begin_connect(c);
        } else {
            response_reset(r);
            c->sent = 0;
            c->started = now_ns();
            send_request(c);
        }
        return;
    }
    hang_up(c, FINISHED);
}

static void read_some(struct connection *c, size_t most) {
    struct group *g = c->group;
    ssize_t n = secure_recv(&c->secure, c->fd, buffer, most < sizeof buffer ? most : sizeof buffer);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return;
        g->closed_by_server++;
        ended(c, 0);
        return;
    }
    uint64_t now = now_ns();
    struct response *r = &c->response;
    if (n == 0) {
        g->closed_by_server++;
        ended(c, r->part == BODY && r->framing == UNTIL_CLOSE);
        return;
    }
    uint64_t before = r->tokens;
    enum part part = r->part;
    g->reads++;
    g->got_bytes += (uint64_t)n;
    size_t used = response_feed(r, &g->expected, g->dialect, g->tokens, buffer, (size_t)n);
    if (part == HEAD && r->part != HEAD)
        g->answered++;
    if (r->tokens > before)
        arrived(c, r->tokens - before, now);
    if (used < (size_t)n)
        response_wrong(r, "bytes after the end of the answer:", buffer + used, (size_t)n - used);
    if (r->part == ENDED) {
        ended(c, 1);
        return;
    }
    if (r->wrong[0] || r->error || (r->status && r->status != 200)) {
        ended(c, 0);
        return;
    }
    if (g->leave_after && r->tokens >= g->leave_after)
        leave(c, g->rst);
    else if (g->stall_after && r->tokens >= g->stall_after)
        watch(c, EPOLLET | EPOLLRDHUP);
}

/* HANDSHAKE: once the ticket is here both sides have finished (RFC 8446 §4.6.1); then the next connection. */
static void await_ticket(struct connection *c) {
    struct group *g = c->group;
    ssize_t n = secure_recv(&c->secure, c->fd, buffer, sizeof buffer);
    if (!c->secure.tickets && n < 0 && errno == EAGAIN) {
        watch(c, EPOLLIN | EPOLLRDHUP);
        return;
    }
    if (!c->secure.tickets || n > 0) {
        g->failed++;
        broken(c, n > 0 ? "an answer that nobody asked for" : "closed before its ticket");
        hang_up(c, FAILED);
        return;
    }
    g->completed++;
    settle(c);
    secure_end(&c->secure, 1);
    close(c->fd);
    c->watching = 0;
    g->reconnects++;
    begin_connect(c);
}

static void begin_request(struct connection *c) {
    c->life = OPEN;
    c->group->connected++;
    if (c->group->mode == HANDSHAKE) {
        histogram_add(&c->group->answer, (now_ns() - c->started) / 1000);
        c->group->resumed += (uint64_t)secure_resumed(&c->secure);
        await_ticket(c);
    } else
        send_request(c);
}

static void shake_hands(struct connection *c) {
    switch (secure_handshake(&c->secure)) {
    case SECURE_DONE:
        begin_request(c);
        break;
    case SECURE_READ:
        watch(c, EPOLLIN | EPOLLRDHUP);
        break;
    case SECURE_WRITE:
        watch(c, EPOLLOUT);
        break;
    case SECURE_FAILED:
        c->group->failed++;
        broken(c, secure_why());
        hang_up(c, FAILED);
    }
}

static void ready(struct connection *c, uint32_t events) {
    struct group *g = c->group;
    if (c->fd < 0)
        return;
    if (c->life == SECURING) {
        shake_hands(c);
        return;
    }
    if (c->life == CONNECTING) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            g->failed++;
            broken(c, strerror(error));
            hang_up(c, FAILED);
            return;
        }
        if (!(events & EPOLLOUT))
            return;
        if (!g->tls) {
            begin_request(c);
            return;
        }
        c->secure.resume = g->resume;
        const char *wrong = secure_begin(&c->secure, c->fd);
        if (wrong)
            fail(wrong);
        c->life = SECURING;
        shake_hands(c);
        return;
    }
    if (g->mode == HANDSHAKE) {
        await_ticket(c);
        return;
    }
    if (c->sent < g->request_length && (events & EPOLLOUT)) {
        send_request(c);
        return;
    }
    if (events & EPOLLIN) {
        read_some(c, sizeof buffer);
        return;
    }
    if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) {
        if (g->mode == PACED && !(events & EPOLLERR))
            return; /* there may be much to read still: the paced reads will find the end */
        if (!c->server_ended) {
            c->server_ended = 1;
            g->closed_by_server++;
            if (g->mode == STALLED) {
                char why[64];
                snprintf(why, sizeof why, "closed by the server after %.1f s", (double)(now_ns() - c->started) / 1e9);
                broken(c, why);
                g->cut++;
                hang_up(c, FINISHED);
            } else if (events & EPOLLERR)
                ended(c, 0);
        }
    }
}

static void read_expected(const char *path) {
    FILE *file = fopen(path, "rb");
    uint32_t length;
    if (!file)
        fail("cannot open the expected tokens");
    expected.tokens = NULL; /* groups that were set up before keep theirs */
    expected.count = 0;
    while (fread(&length, sizeof length, 1, file) == 1) {
        expected.tokens = realloc(expected.tokens, (expected.count + 1) * sizeof *expected.tokens);
        struct expected_token *token = &expected.tokens[expected.count++];
        token->length = length;
        token->text = malloc(length + 1);
        token->raw = NULL;
        token->raw_length = 0;
        if (fread(token->text, 1, length, file) != length)
            fail("the file of expected tokens is cut");
    }
    fclose(file);
}

static void read_group(struct object *o) {
    if (group_count == 64)
        fail("too many groups");
    struct group *g = calloc(1, sizeof *g);
    groups[group_count++] = g;
    snprintf(g->name, sizeof g->name, "%s", json_text(o, "name", "group"));
    const char *mode = json_text(o, "mode", "fast"), *dialect = json_text(o, "dialect", "tokens");
    g->mode = !strcmp(mode, "paced") ? PACED : !strcmp(mode, "stalled") ? STALLED : !strcmp(mode, "short") ? SHORT : !strcmp(mode, "handshake") ? HANDSHAKE : FAST;
    g->dialect = !strcmp(dialect, "openai") ? OPENAI : !strcmp(dialect, "plain") ? PLAIN : TOKENS;
    g->count = (int)json_number(o, "count", 1);
    g->rcvbuf = (int)json_number(o, "rcvbuf", 0);
    g->sequential = (int)json_number(o, "sequential", 0);
    g->rst = (int)json_number(o, "rst", 0);
    g->tls = (int)json_number(o, "tls", 0);
    g->resume = (int)json_number(o, "resume", 0);
    g->read_bytes = (size_t)json_number(o, "read_bytes", 4096);
    g->every_ms = json_number(o, "every_ms", 100);
    g->start_ms = json_number(o, "start_ms", 0);
    g->ramp_ms = json_number(o, "ramp_ms", 0);
    g->rate = json_number(o, "rate", 0);
    g->tokens = (uint64_t)json_number(o, "tokens", 0);
    g->leave_after = (uint64_t)json_number(o, "leave_after", 0);
    g->stall_after = (uint64_t)json_number(o, "stall_after", 0);
    g->requests = (uint64_t)json_number(o, "requests", 0);
    struct field *request = json_field(o, "request");
    if (!request || !request->text)
        fail("a group needs a request");
    g->request = malloc(request->length + 1);
    memcpy(g->request, request->text, request->length + 1);
    g->request_length = request->length;
    g->mark = memmem(g->request, g->request_length, "@@@@@@", 6);
    g->address.sin_family = AF_INET;
    g->address.sin_port = htons((uint16_t)json_number(o, "port", 8000));
    if (inet_pton(AF_INET, json_text(o, "host", "127.0.0.1"), &g->address.sin_addr) != 1)
        fail("host must be an IPv4 address");
    g->expected = expected;
    g->connections = calloc((size_t)g->count, sizeof *g->connections);
    for (int i = 0; i < g->count; i++)
        g->connections[i] = (struct connection){.group = g, .fd = -1, .index = i, .first_us = -1};
    if (running)
        for (int i = 0; i < (g->sequential ? 1 : g->count); i++)
            later(now_ns() + (uint64_t)((g->start_ms + g->ramp_ms * i / g->count) * 1e6), TASK_CONNECT, &g->connections[i]);
    if (running)
        reported_connected = reported_streaming = 0;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6 + (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6;
}

static void report(const char *event, int whole) {
    printf("{\"event\":\"%s\",\"ns\":%llu,\"seconds\":%.6f,\"cpu_seconds\":%.6f,\"loops\":%llu,\"groups\":{", event,
           (unsigned long long)now_ns(), run_at ? (double)(now_ns() - run_at) / 1e9 : 0.0, cpu_seconds(), (unsigned long long)loops);
    static struct histogram late;
    memset(&late, 0, sizeof late);
    for (int i = 0; i < group_count; i++) {
        struct group *g = groups[i];
        uint64_t open = 0;
        for (int j = 0; j < g->count; j++)
            open += g->connections[j].life == OPEN;
#define NUMBER(name, value) printf("\"" name "\":%llu,", (unsigned long long)(value))
        printf("%s\"%s\":{", i ? "," : "", g->name);
        NUMBER("connections", g->count);
        NUMBER("connected", g->connected);
        NUMBER("answered", g->answered);
        NUMBER("begun", g->begun);
        NUMBER("open", open);
        NUMBER("completed", g->completed);
        NUMBER("cut", g->cut);
        NUMBER("wrong", g->wrong);
        NUMBER("bad_status", g->bad_status);
        NUMBER("failed", g->failed);
        NUMBER("closed_by_server", g->closed_by_server);
        NUMBER("reconnects", g->reconnects);
        NUMBER("left", g->left);
        NUMBER("resumed", g->resumed);
        NUMBER("reads", g->reads);
        NUMBER("bytes", g->got_bytes);
        NUMBER("last_first_token_us", g->last_first_token / 1000);
        if (whole) {
            if (g->rate > 0)
                for (int j = 0; j < g->count; j++)
                    judge_pace(&g->connections[j]);
            histogram_merge(&late, &g->late);
            histogram_print(stdout, "gap_us", &g->gap);
            putchar(',');
            histogram_print(stdout, "late_us", &g->late);
            putchar(',');
            histogram_print(stdout, "answer_us", &g->answer);
            putchar(',');
            histogram_print(stdout, "first_us", &g->first);
            printf(",\"first_token_us\":[");
            for (int j = 0; j < g->count; j++)
                printf("%s%lld", j ? "," : "", (long long)g->connections[j].first_us);
            printf("],\"stream_tokens\":[");
            for (int j = 0; j < g->count; j++)
                printf("%s%llu", j ? "," : "", (unsigned long long)g->connections[j].response.tokens);
            printf("],\"left_at_ns\":[");
            for (int j = 0; j < g->count; j++)
                printf("%s%llu", j ? "," : "", (unsigned long long)g->connections[j].left_at);
            printf("],");
        }
        printf("\"first_wrong\":");
        json_print(stdout, g->first_wrong, strlen(g->first_wrong));
        printf(",\"tokens\":%llu}", (unsigned long long)g->got_tokens);
    }
    printf("},");
    histogram_print(stdout, "late_us", &late);
    printf("}\n");
    fflush(stdout);
}

static void reset(void) {
    for (int i = 0; i < group_count; i++) {
        struct group *g = groups[i];
        memset(&g->gap, 0, sizeof g->gap);
        memset(&g->late, 0, sizeof g->late);
        memset(&g->answer, 0, sizeof g->answer);
        memset(&g->first, 0, sizeof g->first);
        for (int j = 0; j < g->count; j++)
            g->connections[j].arrivals_count = 0;
    }
}

static void command(char *line) {
    struct object o;
    if (json_parse(line, &o))
        fail("a command that is not one flat JSON object");
    const char *cmd = json_text(&o, "cmd", "");
    if (!strcmp(cmd, "expect"))
        read_expected(json_text(&o, "path", ""));
    else if (!strcmp(cmd, "group"))
        read_group(&o);
    else if (!strcmp(cmd, "run")) {
        running = 1;
        run_at = now_ns();
        for (int i = 0; i < group_count; i++)
            for (int j = 0; j < (groups[i]->sequential ? 1 : groups[i]->count); j++)
                later(run_at + (uint64_t)((groups[i]->start_ms + groups[i]->ramp_ms * j / groups[i]->count) * 1e6), TASK_CONNECT,
                      &groups[i]->connections[j]);
    } else if (!strcmp(cmd, "snap"))
        report("snap", json_number(&o, "whole", 0) != 0);
    else if (!strcmp(cmd, "reset"))
        reset();
    else if (!strcmp(cmd, "leave")) {
        double every = json_number(&o, "every_ms", 0);
        for (int i = 0; i < group_count; i++)
            if (!strcmp(groups[i]->name, json_text(&o, "group", "")))
                for (int j = 0; j < groups[i]->count; j++) {
                    groups[i]->rst = (int)json_number(&o, "rst", 0);
                    later(now_ns() + (uint64_t)(every * j * 1e6), TASK_LEAVE, &groups[i]->connections[j]);
                }
    } else if (!strcmp(cmd, "stop")) {
        report("result", 1);
        exit(0);
    } else
        fail("an unknown command");
}

static void read_commands(void) {
    static char *line;
    static size_t have, room;
    if (room - have < 65536) {
        room = have + 131072;
        line = realloc(line, room);
    }
    ssize_t n = read(0, line + have, room - have - 1);
    if (n <= 0)
        exit(0); /* whoever started us has gone */
    have += (size_t)n;
    for (char *end; (end = memchr(line, '\n', have));) {
        size_t length = (size_t)(end - line) + 1;
        char *copy = strndup(line, length - 1);
        command(copy);
        free(copy);
        memmove(line, line + length, have - length);
        have -= length;
    }
}

static void say_how_far(void) {
    uint64_t connected = 0, settled = 0, all = 0;
    for (int i = 0; i < group_count; i++) {
        struct group *g = groups[i];
        all += (uint64_t)g->count;
        connected += g->connected - g->reconnects + g->failed;
        settled += g->settled;
    }
    if (!reported_connected && connected >= all) {
        reported_connected = 1;
        report("connected", 0);
    }
    if (!reported_streaming && settled >= all) {
        reported_streaming = 1;
        report("streaming", 0);
    }
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 512, timers_wait());
        loops++;
        for (int i = 0; i < n; i++) {
            if (!events[i].data.ptr)
                read_commands();
            else
                ready(events[i].data.ptr, events[i].events);
        }
        uint64_t now = now_ns();
        for (int most = 256; most && timer_count && timers[0].due <= now; most--) {
            struct timed timed = soonest();
            struct connection *c = timed.subject;
            if (timed.task == TASK_CONNECT && c->life == UNBORN)
                begin_connect(c);
            else if (timed.task == TASK_LEAVE)
                leave(c, c->group->rst);
            else if (timed.task == TASK_READ && c->fd >= 0 && c->life == OPEN) {
                read_some(c, c->group->read_bytes);
                if (c->fd >= 0)
                    later(timed.due + (uint64_t)(c->group->every_ms * 1e6), TASK_READ, c);
            }
        }
        if (running && !(reported_connected && reported_streaming))
            say_how_far();
    }
}
