/* TLS under the generator's connections, by OpenSSL; compiled in with -DBENCH_TLS, which needs OpenSSL's headers.
 *
 * Rule 1: no certificate is verified: the peers' are made on the spot. The server's signature is, as any client does.
 * Rule 2: without read-ahead OpenSSL holds no plaintext back from a buffer that is longer than a record (16 KiB), so that
 *         epoll's readiness of the socket is all there is to wait for. */
#ifndef BENCH_SECURE_H
#define BENCH_SECURE_H

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

enum secure_step { SECURE_DONE, SECURE_READ, SECURE_WRITE, SECURE_FAILED };

#ifdef BENCH_TLS

#include <openssl/err.h>
#include <openssl/ssl.h>

struct secure {
    SSL *ssl;             /* NULL: plain */
    SSL_SESSION *session; /* to resume; NULL: a full handshake */
    int resume;           /* keep the tickets */
    int tickets;          /* that came on this connection */
};

static int secure_ticket(SSL *ssl, SSL_SESSION *session) {
    struct secure *s = SSL_get_app_data(ssl);
    s->tickets++;
    if (!s->resume)
        return 0;
    SSL_SESSION_free(s->session);
    s->session = session;
    return 1; /* it is ours now */
}

/* NULL: it cannot be. */
static const char *secure_begin(struct secure *s, int fd) {
    static SSL_CTX *context;
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        if (!context)
            return "OpenSSL has no context to give";
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, secure_ticket);
    }
    s->tickets = 0;
    s->ssl = SSL_new(context);
    if (!s->ssl || SSL_set_fd(s->ssl, fd) != 1)
        return "OpenSSL has no connection to give";
    SSL_set_app_data(s->ssl, s);
    if (s->session)
        SSL_set_session(s->ssl, s->session);
    SSL_set_connect_state(s->ssl);
    return NULL;
}

static enum secure_step secure_handshake(struct secure *s) {
    ERR_clear_error();
    int n = SSL_do_handshake(s->ssl);
    if (n == 1)
        return SECURE_DONE;
    int error = SSL_get_error(s->ssl, n);
    return error == SSL_ERROR_WANT_READ ? SECURE_READ : error == SSL_ERROR_WANT_WRITE ? SECURE_WRITE : SECURE_FAILED;
}

static const char *secure_why(void) {
    const char *reason = ERR_reason_error_string(ERR_peek_error());
    return reason ? reason : "the TLS handshake was cut";
}

static int secure_resumed(struct secure *s) {
    return SSL_session_reused(s->ssl);
}

/* As recv() and send() are: -1 with errno, 0 for the peer's clean end; an end without close_notify is an error. */
static ssize_t secure_result(struct secure *s, int n) {
    if (n > 0)
        return n;
    switch (SSL_get_error(s->ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        errno = ECONNRESET;
        return -1;
    }
}

static ssize_t secure_recv(struct secure *s, int fd, void *data, size_t most) {
    if (!s->ssl)
        return recv(fd, data, most, 0);
    ERR_clear_error();
    return secure_result(s, SSL_read(s->ssl, data, (int)most));
}

static ssize_t secure_send(struct secure *s, int fd, const void *data, size_t length) {
    if (!s->ssl)
        return send(fd, data, length, MSG_NOSIGNAL);
    ERR_clear_error();
    return secure_result(s, SSL_write(s->ssl, data, (int)length));
}

/* Forget the connection; `politely`: with close_notify, if the socket takes it. */
static void secure_end(struct secure *s, int politely) {
    if (!s->ssl)
        return;
    ERR_clear_error();
    if (politely)
        SSL_shutdown(s->ssl);
    else
        SSL_set_quiet_shutdown(s->ssl, 1); /* a session that was cut may be resumed all the same */
    SSL_free(s->ssl);
    s->ssl = NULL;
}

#else

struct secure {
    int resume, tickets;
};

static const char *secure_begin(struct secure *s, int fd) {
    (void)s, (void)fd;
    return "this generator was compiled without TLS";
}
static enum secure_step secure_handshake(struct secure *s) {
    (void)s;
    return SECURE_FAILED;
}
static const char *secure_why(void) {
    return "no TLS";
}
static int secure_resumed(struct secure *s) {
    (void)s;
    return 0;
}
static ssize_t secure_recv(struct secure *s, int fd, void *data, size_t most) {
    (void)s;
    return recv(fd, data, most, 0);
}
static ssize_t secure_send(struct secure *s, int fd, const void *data, size_t length) {
    (void)s;
    return send(fd, data, length, MSG_NOSIGNAL);
}
static void secure_end(struct secure *s, int politely) {
    (void)s, (void)politely;
}

#endif
#endif
