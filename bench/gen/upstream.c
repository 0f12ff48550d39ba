/* A fast fake upstream: OpenAI's streaming wire, as fast as the socket takes it or paced, and an exact account of its bytes.
 *
 * Commands on stdin, answers on stdout, one flat JSON object per line:
 *   {"cmd":"serve","path":…}                     tokens as for the generator; says {"event":"listening","port":…}
 *   {"cmd":"set","tokens":N,"rate":R}            of the answers begun from now on; 0 tokens: endless, 0 rate: unpaced
 *   {"cmd":"stats"}                              what the kernel took from us (bytes), what of it still waits here (outq: SIOCOUTQ)
 *
 * Rule 1: whatever is asked, the answer is the stream; a GET gets a small JSON, so that health checks are content.
 * Rule 2: one HTTP chunk per event, as model servers do; unpaced, many of them go into one send().
 * Rule 3: `gone` = bytes - outq: what somebody else's kernel has taken from us. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "json.h"
#include "timers.h"

#define MOST 20000
#define SLICE 65536 /* bytes sent per readiness: others get their turn */

enum phase { READING, PREFIX, STREAM, TAIL };

struct connection {
    int fd, watching_out;
    enum phase phase;
    char head[16384];
    size_t head_length, body_left;
    const char *fixed; /* what PREFIX and TAIL send */
    size_t fixed_left, offset;
    uint64_t token, tokens, started, timer_due;
    double rate;
};

static struct connection *connections[MOST];
static char *frames;
static size_t *begins, period;
static char prefix[1024], tail[1024], small[256];
static uint64_t want_tokens;
static double want_rate;
static int epoll_fd, listener = -1;
static uint64_t opened, closed, requests, bytes, tokens;

static void fail(const char *what) {
    printf("{\"event\":\"error\",\"message\":");
    json_print(stdout, what, strlen(what));
    printf("}\n");
    fflush(stdout);
    exit(1);
}

static size_t chunk(char *out, const char *event, size_t length) {
    size_t n = (size_t)sprintf(out, "%zx\r\n", length);
    memcpy(out + n, event, length);
    memcpy(out + n + length, "\r\n", 2);
    return n + length + 2;
}

static const char CHUNK[] = "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                            "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n";

static void prepare(const char *path) {
    FILE *file = fopen(path, "rb");
    uint32_t length;
    size_t at = 0, room = 0;
    char text[256], delta[700], event[1024];
    if (!file)
        fail("cannot open the tokens");
    while (fread(&length, sizeof length, 1, file) == 1) {
        if (length >= sizeof text || fread(text, 1, length, file) != length)
            fail("the file of tokens is not as it must be");
        begins = realloc(begins, (period + 2) * sizeof *begins);
        if (room < at + 2048)
            frames = realloc(frames, room = at + (1 << 20));
        begins[period++] = at;
        size_t n = (size_t)sprintf(delta, "{\"content\":\"");
        for (uint32_t i = 0; i < length; i++) { /* the tokens are UTF-8: only quotes and control characters need an escape */
            unsigned char c = (unsigned char)text[i];
            n += (size_t)(c == '"' || c == '\\' ? sprintf(delta + n, "\\%c", c) : c < 0x20 ? sprintf(delta + n, "\\u%04x", c) : sprintf(delta + n, "%c", c));
        }
        sprintf(delta + n, "\"}");
        at += chunk(frames + at, event, (size_t)snprintf(event, sizeof event, CHUNK, delta, "null"));
        begins[period] = at;
    }
    fclose(file);
    size_t n = (size_t)sprintf(prefix, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                       "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
    chunk(prefix + n, event, (size_t)snprintf(event, sizeof event, CHUNK, "{\"role\":\"assistant\",\"content\":\"\"}", "null"));
    n = chunk(tail, event, (size_t)snprintf(event, sizeof event, CHUNK, "{}", "\"stop\""));
    n += chunk(tail + n, "data: [DONE]\n\n", 14);
    strcpy(tail + n, "0\r\n\r\n");
    sprintf(small, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 92\r\n\r\n%-92s",
            "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\"}]}");
}

static void watch(struct connection *c, int out) {
    if (c->watching_out == out)
        return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0u), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    c->watching_out = out;
}

static void drop(struct connection *c) {
    connections[c->fd] = NULL;
    close(c->fd);
    closed++;
    c->fd = -1;
    if (!c->timer_due)
        free(c); /* else its timer does */
}

static ssize_t put(struct connection *c, const char *p, size_t n) {
    ssize_t sent = send(c->fd, p, n, MSG_NOSIGNAL);
    if (sent > 0)
        bytes += (uint64_t)sent;
    return sent;
}

/* Send what may be sent now. Returns 0 when the connection was lost. */
static int pump(struct connection *c) {
    size_t budget = SLICE;
    uint64_t allowed = UINT64_MAX;
    if (c->phase == STREAM && c->rate > 0)
        allowed = (uint64_t)((double)(now_ns() - c->started) * c->rate / 1e9) + 1;
    while (c->phase != READING) {
        if (c->phase != STREAM) {
            ssize_t n = put(c, c->fixed, c->fixed_left);
            if (n < 0 && errno != EAGAIN)
                return 0;
            if (n > 0) {
                c->fixed += n;
                c->fixed_left -= (size_t)n;
            }
            if (c->fixed_left) {
                watch(c, 1);
                return 1;
            }
            if (c->phase == TAIL) {
                c->phase = READING;
                c->head_length = 0;
                watch(c, 0);
                return 1;
            }
            c->phase = STREAM;
            c->started = now_ns();
            if (c->rate > 0)
                allowed = 1;
            continue;
        }
        if (c->tokens && c->token == c->tokens) {
            c->phase = TAIL;
            c->fixed = tail;
            c->fixed_left = strlen(tail);
            continue;
        }
        uint64_t until = c->tokens && c->tokens < allowed ? c->tokens : allowed;
        if (c->token >= until) {
            watch(c, 0);
            if (!c->timer_due) {
                c->timer_due = c->started + (uint64_t)((double)c->token / c->rate * 1e9) + 1;
                later(c->timer_due, 0, c);
            }
            return 1;
        }
        size_t index = c->token % period;
        uint64_t ready = until - c->token < period - index ? until - c->token : period - index;
        size_t from = begins[index] + c->offset, n = begins[index + ready] - from;
        if (n > budget)
            n = budget;
        ssize_t sent = put(c, frames + from, n);
        if (sent < 0) {
            if (errno != EAGAIN)
                return 0;
            watch(c, 1);
            return 1;
        }
        for (from += (size_t)sent; index < period && from >= begins[index + 1]; index++) {
            c->token++;
            tokens++;
        }
        c->offset = from - (index < period ? begins[index] : begins[period]);
        budget -= (size_t)sent;
        if (!budget) {
            watch(c, 1);
            return 1;
        }
    }
    return 1;
}

static int take_request(struct connection *c) {
    char discard[16384];
    for (;;) {
        if (c->phase != READING || c->body_left) {
            ssize_t n = recv(c->fd, discard, c->body_left && c->body_left < sizeof discard ? c->body_left : sizeof discard, 0);
            if (n <= 0)
                return n < 0 && errno == EAGAIN;
            if (c->body_left) {
                c->body_left -= (size_t)n;
                if (!c->body_left)
                    return pump(c);
            }
            continue;
        }
        /* byte-exact: peek, so that the body stays in the kernel until the head is known */
        ssize_t n = recv(c->fd, c->head, sizeof c->head - 1, MSG_PEEK);
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
        c->head[n] = 0;
        char *blank = memmem(c->head, (size_t)n, "\r\n\r\n", 4);
        if (!blank)
            return (size_t)n < sizeof c->head - 1; /* the rest comes; level-triggered, so this may spin for a moment */
        size_t head = (size_t)(blank - c->head) + 4;
        n = recv(c->fd, c->head, head, 0);
        c->head[head - 1] = 0;
        size_t body = 0;
        int is_chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        if (length)
            body = strtoull(length + 17, NULL, 10);
        if (is_chunked) { /* a relay that streams the body on: it is small, and ends with 0 CRLF CRLF */
            char whole[65536];
            size_t have = 0;
            while (have < sizeof whole && (have < 5 || memcmp(whole + have - 5, "0\r\n\r\n", 5))) {
                ssize_t more = recv(c->fd, whole + have, sizeof whole - have, 0);
                if (more == 0 || (more < 0 && errno != EAGAIN))
                    return 0;
                if (more > 0)
                    have += (size_t)more;
            }
        }
        requests++;
        if (!strncmp(c->head, "GET", 3)) {
            c->phase = TAIL;
            c->fixed = small;
        } else {
            c->phase = PREFIX;
            c->fixed = prefix;
        }
        c->fixed_left = strlen(c->fixed);
        c->token = c->offset = 0;
        c->tokens = want_tokens;
        c->rate = want_rate;
        c->body_left = body;
        if (!body && !pump(c))
            return 0;
    }
}

static void accept_all(void) {
    for (;;) {
        int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if (fd >= MOST) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        connections[fd] = c;
        opened++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void report(void) {
    struct rusage u;
    uint64_t outq = 0;
    for (int fd = 0; fd < MOST; fd++) {
        int waiting = 0;
        if (connections[fd] && !ioctl(fd, SIOCOUTQ, &waiting))
            outq += (uint64_t)waiting;
    }
    getrusage(RUSAGE_SELF, &u);
    printf("{\"event\":\"stats\",\"ns\":%llu,\"opened\":%llu,\"closed\":%llu,\"requests\":%llu,\"tokens\":%llu,\"bytes\":%llu,"
           "\"outq\":%llu,\"cpu_seconds\":%.6f}\n",
           (unsigned long long)now_ns(), (unsigned long long)opened, (unsigned long long)closed, (unsigned long long)requests,
           (unsigned long long)tokens, (unsigned long long)bytes, (unsigned long long)outq,
           (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6 + (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6);
    fflush(stdout);
}

static void command(char *line) {
    struct object o;
    if (json_parse(line, &o))
        fail("a command that is not one flat JSON object");
    const char *cmd = json_text(&o, "cmd", "");
    if (!strcmp(cmd, "serve")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)json_number(&o, "port", 0))};
        socklen_t length = sizeof address;
        int one = 1;
        prepare(json_text(&o, "path", ""));
        inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
        listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
            fail(strerror(errno));
        getsockname(listener, (struct sockaddr *)&address, &length);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
        printf("{\"event\":\"listening\",\"port\":%d}\n", ntohs(address.sin_port));
        fflush(stdout);
    } else if (!strcmp(cmd, "set")) {
        want_tokens = (uint64_t)json_number(&o, "tokens", 0);
        want_rate = json_number(&o, "rate", 0);
        printf("{\"event\":\"set\"}\n");
        fflush(stdout);
    } else if (!strcmp(cmd, "stats"))
        report();
    else
        fail("an unknown command");
}

static void read_commands(void) {
    static char line[65536];
    static size_t have;
    ssize_t n = read(0, line + have, sizeof line - have - 1);
    if (n <= 0)
        exit(0);
    have += (size_t)n;
    for (char *end; (end = memchr(line, '\n', have));) {
        size_t length = (size_t)(end - line) + 1;
        *end = 0;
        command(line);
        memmove(line, line + length, have - length);
        have -= length;
    }
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = 0}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 256, timers_wait());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == 0)
                read_commands();
            else if (fd == listener)
                accept_all();
            else if (connections[fd]) {
                struct connection *c = connections[fd];
                int alive = !(events[i].events & (EPOLLERR | EPOLLHUP));
                if (alive && (events[i].events & (EPOLLIN | EPOLLRDHUP)))
                    alive = take_request(c);
                if (alive && (events[i].events & EPOLLOUT))
                    alive = pump(c);
                if (!alive)
                    drop(c);
            }
        }
        uint64_t now = now_ns();
        while (timer_count && timers[0].due <= now) {
            struct connection *c = soonest().subject;
            c->timer_due = 0;
            if (c->fd < 0)
                free(c);
            else if (c->phase == STREAM && !pump(c))
                drop(c);
        }
    }
}
